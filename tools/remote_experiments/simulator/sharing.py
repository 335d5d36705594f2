"""Hosts that share one machine's processors, as the workers of an experiment do: who is done when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sharing:
    """Hold what a machine does at once.

    processors: that compute side by side. slowdown: how much longer each takes while another computes
    too, since they share memory, and maybe a core.
    """

    processors: int
    slowdown: float = 1.0

    def rate(self, n_busy: int) -> float:
        """Give how fast each of so many computes, against one that is alone."""
        if n_busy < 2 or self.processors < 2:
            return 1 / max(1, n_busy)
        return min(1.0, self.processors / n_busy) / self.slowdown

    def ends(self, jobs: Sequence[tuple[float, float]]) -> list[float]:
        """Give when each job is done: jobs begin at a time and compute for so long if alone."""
        left = [work for _, work in jobs]
        ends = [begin if work <= 0 else 0.0 for begin, work in jobs]
        now = min((begin for begin, _ in jobs), default=0.0)
        while waiting := [i for i, work in enumerate(left) if work > 0]:
            busy = [i for i in waiting if jobs[i][0] <= now]
            coming = [jobs[i][0] for i in waiting if jobs[i][0] > now]
            if not busy:
                now = min(coming)
                continue
            rate = self.rate(len(busy))
            done = {i: now + left[i] / rate for i in busy}
            until = min([*done.values(), *coming])
            for i in busy:
                # By times: late in a long simulation what is left would never be exactly 0.
                if done[i] <= until:
                    left[i], ends[i] = 0.0, until
                else:
                    left[i] -= (until - now) * rate
            now = until
        return ends
