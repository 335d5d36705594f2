"""What memory this process may still take: MemAvailable and the cgroup limits, whichever is tighter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from remoe_edge.machine import kernel_files
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


def _limit(path: Path) -> int | None:
    # "max" in v2; v1 writes a number near 2^63 for no limit.
    found = kernel_files.number(path)
    return found if found is not None and found < 1 << 60 else None


def _cgroup_folders() -> list[tuple[Path, str, str]]:
    """List (folder, limit file, usage file) of this process' memory cgroups, up to the root."""
    found: list[tuple[Path, str, str]] = []
    for line in kernel_files.text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        while True:
            found.append((folder, *names))
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
    return found


def _reclaimable(folder: Path) -> int:
    """Read how much of a cgroup's usage is page cache that the kernel can drop."""
    lines = kernel_files.text(folder / "memory.stat").splitlines()
    stat = dict(line.split()[:2] for line in lines if len(line.split()) == 2)
    files = [stat.get("total_inactive_file", stat.get("inactive_file", "0"))]
    files.append(stat.get("total_active_file", stat.get("active_file", "0")))
    return sum(int(each) for each in files)


def available() -> Memory:
    """Measure the memory that can still be taken without swapping or being killed."""
    best = Memory(psutil.virtual_memory().available, "MemAvailable", None)
    for folder, limit_name, usage_name in _cgroup_folders():
        limit = _limit(folder / limit_name)
        usage = kernel_files.number(folder / usage_name)
        if limit is None or usage is None:
            continue
        free = max(0, limit - usage + min(usage, _reclaimable(folder)))
        if free < best.available_bytes:
            best = Memory(free, f"the cgroup limit of {limit / 2**20:,.0f} MiB", limit)
    return best


def cgroup_limit_bytes() -> int | None:
    """Read the tightest memory limit of this process' cgroups; None without one."""
    found = [_limit(folder / limit_name) for folder, limit_name, _ in _cgroup_folders()]
    return min((limit for limit in found if limit is not None), default=None)


def peak_rss_bytes() -> int:
    """Read the highest resident size of this process so far."""
    for line in kernel_files.text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
