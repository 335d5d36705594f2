"""What a profile is chosen and judged by: misses in replays from cold, of parts of every fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from remoe_edge.native import _core
from remoe_edge.profile.folds import SESSION_STEPS
from remoe_edge.profile.pack import Links, Weights
from remoe_edge.routing.trace import Trace

WINDOW_STEPS = 700  # a cache is long warm by then
WINDOWS = 2


@dataclass
class Replay:
    """Hold a part to replay and, per cache size, LRU's and the optimum's misses on it."""

    part: Trace
    bounds: dict[int, tuple[int, int]] = field(default_factory=dict)

    def misses(self, n_slots: int, policy: str, data: bytes | None = None) -> int:
        """Count them from cold."""
        part = self.part
        counts = _core.simulate(
            part.columns(), part.n_layers, part.n_experts, n_slots, policy, 0, data
        )
        return counts["misses"]

    def gap_share(self, n_slots: int, data: bytes) -> float:
        """Give the share of the LRU-to-optimum gap that a profile takes back."""
        if n_slots not in self.bounds:
            self.bounds[n_slots] = self.misses(n_slots, "lru"), self.misses(n_slots, "belady")
        lru, best = self.bounds[n_slots]
        return (lru - self.misses(n_slots, "reuse-biased", data)) / (lru - best or 1)


class Trials:
    """Try weights in replays of folds, each with links that were fitted on the others.

    `profile(shares, weights, links)` gives the bytes to try. Thread-safe but for the first try at a
    cache size.
    """

    def __init__(
        self,
        folds: Sequence[Trace],
        links: Sequence[Links],
        profile: Callable[[Sequence[float], Weights, Links], bytes],
    ) -> None:
        self._total = folds[0].n_layers * folds[0].n_experts
        self._top_k = folds[0].top_k
        self._links = links
        self._profile = profile
        cut = [_cut(fold) for fold in folds]
        self._choosing = [parts for parts, _ in cut]
        self._judging = [[part] for _, part in cut]

    def choosing(self, share: float, weights: Weights) -> float:
        """Give the mean share of the gap on the parts to choose by."""
        return float(np.mean(self._taken(self._choosing, share, weights)))

    def judging(self, share: float, weights: Weights) -> list[float]:
        """Give each fold's share of the gap on the part to judge by."""
        return self._taken(self._judging, share, weights)

    def _taken(
        self, replays: Sequence[Sequence[Replay]], share: float, weights: Weights
    ) -> list[float]:
        n_slots = max(round(share * self._total), self._top_k)
        taken = []
        for parts, links in zip(replays, self._links, strict=True):
            data = self._profile([share], weights, links)
            taken.append(float(np.mean([part.gap_share(n_slots, data) for part in parts])))
        return taken


def _cut(fold: Trace) -> tuple[list[Replay], Replay]:
    """Cut out what to choose by, from the first two thirds, and, from the rest, what to judge by."""
    cut = fold.total_tokens * 2 // 3
    length = min(WINDOW_STEPS, cut // WINDOWS)
    starts = [cut * i // WINDOWS for i in range(WINDOWS)]
    return (
        [Replay(fold.tokens(start, start + length)) for start in starts],
        Replay(fold.tokens(cut, min(cut + SESSION_STEPS, fold.total_tokens))),
    )
