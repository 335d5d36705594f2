"""What memory this process may still take: MemAvailable and the cgroup limits, whichever is tighter."""

from __future__ import annotations

import mmap
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.cgroups import ROOT, memory_groups, reclaimable_bytes
from remoe_edge.units import MIB

# For the page cache of other programs and whatever else wakes up; in a cgroup, whose usage is counted
# already, for Python's own growth and the libraries' pages.
RESERVE_BYTES = 256 * MIB
CGROUP_RESERVE_BYTES = 96 * MIB


@dataclass(frozen=True)
class Memory:
    """Hold bytes that can be had, and why not more."""

    available_bytes: int
    limited_by: str
    cgroup_limit_bytes: int | None

    @property
    def reserve_bytes(self) -> int:
        """Say what is best left free of it: more where other programs live off the same memory."""
        return RESERVE_BYTES if self.cgroup_limit_bytes is None else CGROUP_RESERVE_BYTES


def available(root: Path = ROOT) -> Memory:
    """Measure the memory that can still be taken without swapping or being killed."""
    meminfo = kernel_files.text(root / "proc/meminfo")
    free = field_bytes(meminfo, "MemAvailable")
    if free is None:  # before Linux 3.14
        free = field_bytes(meminfo, "MemFree") or 0
    best = Memory(free, "MemAvailable", None)
    for group in memory_groups(root):
        usage = kernel_files.number(group.usage_file)
        if usage is None:
            continue
        given_up = min(usage, reclaimable_bytes(kernel_files.text(group.stat_file)))
        free = max(0, group.limit_bytes - usage + given_up)
        if free < best.available_bytes:
            limit = group.limit_bytes
            best = Memory(free, f"the cgroup limit of {limit / 2**20:,.0f} MiB", limit)
    if root == ROOT:
        return min((best, *soft_limits()), key=lambda each: each.available_bytes)
    return best


def soft_limits() -> Iterator[Memory]:
    """Give what `ulimit` leaves this process, where it limits anything."""
    for limit, used, option in (
        (resource.RLIMIT_AS, "VmSize", "-v"),
        (resource.RLIMIT_DATA, "VmData", "-d"),
    ):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            status = kernel_files.text(Path("/proc/self/status"))
            free = max(0, most - (field_bytes(status, used) or 0))
            yield Memory(free, f"the limit of {most / 2**20:,.0f} MiB (ulimit {option})", None)


def field_bytes(meminfo: str, name: str) -> int | None:
    """Read a line of /proc/meminfo, in bytes; None where there is none."""
    match = re.search(rf"^{name}:\s+([0-9]+)", meminfo, re.MULTILINE)
    number = kernel_files.whole(match[1]) if match else None
    return None if number is None else number * 1024


def total_bytes(root: Path = ROOT) -> int:
    """Read how much memory there is, or how much the tightest cgroup lets this process have of it."""
    installed = field_bytes(kernel_files.text(root / "proc/meminfo"), "MemTotal") or 0
    limit = cgroup_limit_bytes(root)
    return installed if limit is None else min(installed, limit)


def cgroup_limit_bytes(root: Path = ROOT) -> int | None:
    """Read the tightest memory limit of this process' cgroups; None without one."""
    return min((group.limit_bytes for group in memory_groups(root)), default=None)


def anonymous_bytes(root: Path = ROOT) -> int:
    """Read how much memory of its own this process holds, files' pages left out."""
    pages = kernel_files.text(root / "proc/self/statm").split()
    if len(pages) < 3:
        return 0
    resident, of_files = kernel_files.whole(pages[1]), kernel_files.whole(pages[2])
    return 0 if resident is None or of_files is None else (resident - of_files) * mmap.PAGESIZE


def peak_rss_bytes() -> int:
    """Read the highest resident size of this process so far."""
    return field_bytes(kernel_files.text(Path("/proc/self/status")), "VmHWM") or 0
