"""What the control groups of this process allow it, version 1 and 2, its own and all above it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files

_NO_LIMIT = 1 << 60  # version 1 writes a number near 2^63 where there is none
ROOT = Path("/")


@dataclass(frozen=True)
class MemoryGroup:
    """Hold a group that limits memory: where it is, the file that holds the tightest limit, and it.

    Beyond `memory.high` the kernel slows a process down until it gives back; beyond `memory.max` it
    kills. Both are limits to stay below.
    """

    folder: Path
    version: int
    limit_name: str
    limit_bytes: int

    @property
    def usage_file(self) -> Path:
        """Give the file that says how much is used, page cache included."""
        return self.folder / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")

    @property
    def stat_file(self) -> Path:
        """Give the file that says by what."""
        return self.folder / "memory.stat"


def groups(controller: str, root: Path = ROOT) -> Iterator[tuple[Path, int]]:
    """Give (folder, version) of this process' groups of a controller, each up to the root."""
    for line in kernel_files.text(root / "proc/self/cgroup").splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, version = root / "sys/fs/cgroup", 2
            if not (top / "cgroup.controllers").exists():
                top = top / "unified"  # beside version 1
        elif controller in controllers.split(","):
            top, version = root / "sys/fs/cgroup" / controller, 1
            if not top.exists():  # several in one, without the links that systemd makes
                top = root / "sys/fs/cgroup" / controllers
        else:
            continue
        folder = top / path.lstrip("/")
        while True:
            yield folder, version
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent


def memory_groups(root: Path = ROOT) -> list[MemoryGroup]:
    """List the groups that limit this process' memory."""
    found = []
    for folder, version in groups("memory", root):
        names = ("memory.high", "memory.max") if version == 2 else ("memory.limit_in_bytes",)
        limits = [
            (limit, name)
            for name in names
            if (limit := kernel_files.number(folder / name)) is not None and 0 <= limit < _NO_LIMIT
        ]
        if limits:
            limit, name = min(limits)
            found.append(MemoryGroup(folder, version, name, limit))
    return found


def reclaimable_bytes(stat: str) -> int:
    """Tell from a `memory.stat` how much of a group's usage is page cache that can be dropped.

    Pages that a process has mapped are its running code, which would be read again at once; dirty
    ones have to be written first. Neither counts.
    """
    held: dict[str, int] = {}
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if (number := kernel_files.whole(value)) is not None:
            held[name] = number

    def of(name: str, old: str = "") -> int:
        # Version 1 has one figure for the group, and one (total_) for those below it too.
        return held.get("total_" + (old or name), held.get(name, held.get(old, 0)))

    files = of("inactive_file") + of("active_file")
    kept = of("file_mapped", "mapped_file") + of("file_dirty", "dirty")
    return max(0, files - kept - of("file_writeback", "writeback"))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Read how many processors' time this process' groups allow it, the tightest; None: no quota."""
    found: list[float] = []
    for folder, version in groups("cpu", root):
        if version == 2:
            quota, _, period = kernel_files.word(folder / "cpu.max").partition(" ")
        else:
            quota = kernel_files.word(folder / "cpu.cfs_quota_us")
            period = kernel_files.word(folder / "cpu.cfs_period_us")
        quota_us, period_us = kernel_files.whole(quota), kernel_files.whole(period)
        if quota_us and period_us and min(quota_us, period_us) > 0:
            found.append(quota_us / period_us)
    return min(found, default=None)


def cpuset(root: Path = ROOT) -> str | None:
    """Read which processors this process' nearest group leaves it, as "0-3,6"; None: not told."""
    for folder, version in groups("cpuset", root):
        names = (
            ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
        )
        for name in names:
            if told := kernel_files.word(folder / name):
                return told
    return None
