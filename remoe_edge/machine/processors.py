"""How many threads should compute: processors this process may use, its quota, big and little cores."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.cgroups import ROOT, cpu_quota

# A core with less of the fastest one's capacity makes all threads wait for it: llama.cpp shares out
# a product evenly.
_BIG = 0.75
_MOST = 1 << 16  # processors that a list may name: kernels are built for some thousand


@dataclass(frozen=True)
class Processors:
    """Hold what there is: processors online, those allowed (affinity and cpusets), the big ones of
    them, the quota of processor time; and the threads that follow.
    """

    online: int
    allowed: int
    big: int
    quota: float | None
    threads: int

    def why(self) -> str:
        """Say in words what is fewer than all; "" where nothing is."""
        parts = []
        if self.allowed < self.online:
            parts.append(f"a cpuset or affinity leaves {self.allowed} of {self.online} processors")
        if self.big < self.allowed:
            parts.append(f"{self.allowed - self.big} of them are little cores, left out")
        if self.quota is not None and self.quota < self.allowed:
            parts.append(f"a CPU quota allows the time of {self.quota:g}")
        return "; ".join(parts)


def processors(root: Path = ROOT, allowed: Set[int] | None = None) -> Processors:
    """Look at the processors; `allowed`: those of this process, where not the kernel is asked."""
    usable = os.sched_getaffinity(0) if allowed is None else allowed
    capacities = {number: _capacity(root, number) for number in usable}
    fastest = max((each for each in capacities.values() if each is not None), default=None)
    big = len(usable)
    if fastest:
        big = sum(1 for each in capacities.values() if (each or fastest) >= _BIG * fastest)
    quota = cpu_quota(root)
    threads = max(1, big)
    if quota is not None:
        # With more threads than the quota pays for, all of them stand still for a part of each period.
        threads = max(1, min(threads, int(quota + 0.25)))
    return Processors(max(_online(root), len(usable)), len(usable), big, quota, threads)


def default_threads() -> int:
    """Give the threads that an engine computes with unless it is told otherwise."""
    return processors().threads


def _capacity(root: Path, number: int) -> int | None:
    return kernel_files.number(root / f"sys/devices/system/cpu/cpu{number}/cpu_capacity")


def _online(root: Path) -> int:
    return count(kernel_files.word(root / "sys/devices/system/cpu/online"))


def listed(text: str) -> set[int]:
    """Give what a list such as "0-3,6" names; nothing where it is none."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        begin, end = kernel_files.whole(first), kernel_files.whole(last if dash else first)
        if begin is None or end is None or not 0 <= begin <= end < _MOST:
            return set()
        found.update(range(begin, end + 1))
    return found


def count(text: str) -> int:
    """Count what such a list names."""
    return len(listed(text))
