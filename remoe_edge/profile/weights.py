"""One weight per column of the score: fitted for several horizons, chosen and searched by replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.native import _core
from remoe_edge.profile.logistic import Floats, by_newton
from remoe_edge.profile.search import ROUNDS, Doubles, search


class Judge(Protocol):
    """Say what weights are worth: shares of the gap, to choose by and, apart, to judge by."""

    def choosing(self, share: float, weights: npt.NDArray[np.floating]) -> float: ...
    def judging(self, share: float, weights: npt.NDArray[np.floating]) -> list[float]: ...


@dataclass
class Candidates:
    """Hold fitted weights by horizon, and every column's spread, which makes them comparable."""

    by_horizon: dict[int, Floats]
    spread: Doubles


@dataclass
class Choice:
    """Hold the weights for one size of the cache, and what they took back where they are judged."""

    horizon: int
    weights: Floats
    searched: bool
    taken: list[float]


def fit_weights(
    columns: Floats, wanted: dict[int, npt.NDArray[np.bool_]], use: Sequence[str]
) -> Candidates:
    """Fit weights of the columns in `use` for each horizon; the others get 0."""
    names: list[str] = _core.feature_names()
    at = [i for i, name in enumerate(names) if name in use]
    by_horizon = {}
    for horizon, labels in wanted.items():
        by_horizon[horizon] = np.zeros(len(names), np.float32)
        by_horizon[horizon][at], _ = by_newton(columns[:, at], labels)
    spread = columns.std(0, dtype=np.float64)
    spread[spread < 1e-6] = 1  # of a column that never varies; its weight is 0
    return Candidates(by_horizon, spread)


def choose(
    judge: Judge,
    share: float,
    candidates: Candidates,
    rng: np.random.Generator,
    progress: Callable[[str], None],
) -> Choice:
    """Take the best horizon's weights, or those that a search finds near them if they judge better."""
    progress(f"replaying at {share:.0%}")
    values = {
        horizon: judge.choosing(share, weights)
        for horizon, weights in candidates.by_horizon.items()
    }
    horizon = max(values, key=values.__getitem__)
    fitted, spread = candidates.by_horizon[horizon], candidates.spread
    near = search(
        fitted * spread,
        lambda at: judge.choosing(share, at / spread),
        rng,
        lambda done: progress(f"searching at {share:.0%}, {done + 1}/{ROUNDS}"),
    )
    found = (near / spread).astype(np.float32)
    before, after = judge.judging(share, fitted), judge.judging(share, found)
    if np.mean(after) > np.mean(before):
        return Choice(horizon, found, True, after)
    return Choice(horizon, fitted, False, before)
