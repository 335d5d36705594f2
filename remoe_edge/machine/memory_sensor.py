"""What is free right now, read fifty times a second: open files, and the costly ones only when due."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.cgroups import ROOT, MemoryGroup, memory_groups, reclaimable_bytes
from remoe_edge.units import MIB

_LIMITS_S, _STAT_S = 1.0, 0.25  # how old limits, and what is reclaimable, may be
_MACHINE_S, _FAR_BYTES = 0.1, 512 * MIB  # and how old MemAvailable, where it is so far from tight
_STAT_BYTES = 4 * MIB  # a change of usage after which the latter is read anew
_AVAILABLE = re.compile(rb"MemAvailable:\s+(\d+)")
_STALL_S = 0.25  # over which stalls are averaged


@dataclass(frozen=True)
class Seen:
    """Hold one look: bytes that can still be taken, what limits them, the share of time stalled.

    cgroup: whether a control group limits it, and not the machine. stalled: of the last quarter of a
    second, the part in which every task of the group (or the machine) waited for memory.
    """

    free_bytes: int
    cgroup: bool
    stalled: float


class MemorySensor:
    """Read free memory as `memory.available` does, and stalls by the kernel's PSI, cheaply.

    Not synchronised: one thread's. Files are closed by `close`, or with it.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._meminfo = _File(root / "proc/meminfo")
        self._groups: list[_Group] = []
        self._limits_s = float("-inf")
        self._stalls: _Stalls | None = None
        self._machine_s, self._machine_bytes = float("-inf"), 0

    def read(self, now_s: float) -> Seen | None:
        """Look at what is free at `now_s`, on a clock that only goes forward.

        None where the kernel does not tell, or its files cannot be opened.
        """
        if now_s - self._limits_s >= _LIMITS_S:
            self._find(now_s)
        known = [group.free_bytes(now_s) for group in self._groups]
        within = min((each for each in known if each is not None), default=None)
        # The kernel adds it up anew for whoever asks: not each time where it is far from tight.
        far = within is not None and self._machine_bytes > within + _FAR_BYTES
        if not far or now_s - self._machine_s >= _MACHINE_S:
            told = _AVAILABLE.search(self._meminfo.bytes())
            kib = None if told is None else _whole(told[1])
            if kib is None:
                return None
            self._machine_s, self._machine_bytes = now_s, kib * 1024
        cgroup = within is not None and within < self._machine_bytes
        free = within if cgroup and within is not None else self._machine_bytes
        stalled = self._stalls.share(now_s) if self._stalls is not None else 0.0
        return Seen(max(0, free), cgroup, stalled)

    def close(self) -> None:
        """Close the files."""
        self._meminfo.close()
        self._let_go()

    def _find(self, now_s: float) -> None:
        self._limits_s = now_s
        found = memory_groups(self._root)
        if self._stalls is not None and found == [each.group for each in self._groups]:
            return
        self._let_go()
        self._groups = [_Group(each) for each in found]
        pressures = [each.folder / "memory.pressure" for each in found if each.version == 2]
        self._stalls = _Stalls([*pressures, self._root / "proc/pressure/memory"])

    def _let_go(self) -> None:
        for group in self._groups:
            group.close()
        self._groups = []
        if self._stalls is not None:
            self._stalls.close()
        self._stalls = None


def _whole(word: bytes) -> int | None:
    return kernel_files.whole(word.decode("ascii", "replace"))


class _File:
    """A small file of the kernel's that is kept open; empty where it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = None

    def bytes(self) -> bytes:
        if self._fd is None:
            return b""
        try:
            return os.pread(self._fd, 16384, 0)
        except OSError:
            return b""

    def close(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = None


class _Group:
    """One limiting group."""

    def __init__(self, group: MemoryGroup) -> None:
        self.group = group
        self._usage, self._stat = _File(group.usage_file), _File(group.stat_file)
        self._reclaimable = self._then_bytes = 0
        self._then_s = float("-inf")

    def free_bytes(self, now_s: float) -> int | None:
        usage = _whole(self._usage.bytes().strip())
        if usage is None or usage < 0:
            return None
        if now_s - self._then_s >= _STAT_S or abs(usage - self._then_bytes) >= _STAT_BYTES:
            self._reclaimable = reclaimable_bytes(self._stat.bytes().decode("ascii", "replace"))
            self._then_s, self._then_bytes = now_s, usage
        return self.group.limit_bytes - usage + min(usage, self._reclaimable)

    def close(self) -> None:
        self._usage.close()
        self._stat.close()


class _Stalls:
    """The kernel's total of stalled time, from the first of some files that is there."""

    def __init__(self, paths: list[Path]) -> None:
        self._file = _File(next((each for each in paths if each.exists()), paths[-1]))
        self._then: tuple[float, int] | None = None
        self._share = 0.0

    def share(self, now_s: float) -> float:
        if self._then is not None and now_s - self._then[0] < _STALL_S:
            return self._share
        total_us = 0
        for line in self._file.bytes().splitlines():
            if line.startswith(b"full "):
                total_us = _whole(line.rpartition(b"total=")[2]) or 0
        if self._then is not None:
            span_us = (now_s - self._then[0]) * 1e6
            self._share = min(1.0, max(0.0, (total_us - self._then[1]) / span_us))
        self._then = (now_s, total_us)
        return self._share

    def close(self) -> None:
        self._file.close()
