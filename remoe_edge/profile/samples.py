"""What weights are fitted to: columns of the score at chosen events, and what was used soon after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from remoe_edge.native import _core
from remoe_edge.profile.folds import sessions
from remoe_edge.profile.logistic import Floats
from remoe_edge.profile.pack import pack
from remoe_edge.routing.trace import Trace

HORIZONS = (1, 2, 4, 8, 16, 32)  # steps within which a use counts as soon
SAMPLES_PER_FOLD = 1500
WARM_STEPS = 100


def pick(fold: Trace, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Choose events of each session to fit weights to."""
    picks = []
    parts = sessions(fold)
    for session in parts:
        first = WARM_STEPS * session.n_layers
        last = session.n_events - max(HORIZONS) * session.n_layers
        count = min(SAMPLES_PER_FOLD // len(parts), last - first)
        picks.append(np.sort(rng.choice(np.arange(first, last), count, replace=False)))
    return picks


def columns(fold: Trace, picks: list[npt.NDArray[np.int64]], data: bytes | None) -> Floats:
    """Give the score's columns, with the links of profile `data`: [event * expert, column]."""
    blocks = [
        np.asarray(
            _core.policy_columns(part.columns(), part.n_layers, part.n_experts, data, events)
        )
        for part, events in zip(sessions(fold), picks, strict=True)
    ]
    return np.concatenate([block.reshape(-1, block.shape[2]) for block in blocks])


def scores(fold: Trace, weights: Floats) -> Floats:
    """Give the scores of every token without links: [token, layer, expert]."""
    data = pack([1], weights)
    return np.concatenate(
        [
            _core.policy_scores(part.columns(), part.n_layers, part.n_experts, data).reshape(
                -1, part.n_layers, part.n_experts
            )
            for part in sessions(fold)
        ]
    )


def used(fold: Trace, layer: int) -> npt.NDArray[np.bool_]:
    """Say which experts of a layer each token uses: [token, expert]."""
    chosen = fold.experts.reshape(-1, fold.n_layers, fold.top_k)[:, layer].astype(np.int64)
    found = np.zeros((len(chosen), fold.n_experts), np.bool_)
    np.put_along_axis(found, chosen, True, axis=1)
    return found


def soon(now: npt.NDArray[np.bool_], horizon: int) -> npt.NDArray[np.bool_]:
    """Say which experts are used within `horizon` steps after each one."""
    found = np.zeros_like(now)
    for step in range(1, horizon + 1):
        found[:-step] |= now[step:]
    return found


def labels(fold: Trace, picks: list[npt.NDArray[np.int64]]) -> dict[int, npt.NDArray[np.bool_]]:
    """Say, per horizon, what the columns' experts should have scored: [event * expert]."""
    blocks: dict[int, list[npt.NDArray[np.bool_]]] = {horizon: [] for horizon in HORIZONS}
    for part, events in zip(sessions(fold), picks, strict=True):
        found = {h: np.zeros((len(events), fold.n_experts), np.bool_) for h in HORIZONS}
        for layer in range(fold.n_layers):
            now = used(part, layer)
            rows = np.flatnonzero(events % fold.n_layers == layer)
            for horizon in HORIZONS:
                found[horizon][rows] = soon(now, horizon)[events[rows] // fold.n_layers]
        for horizon in HORIZONS:
            blocks[horizon].append(found[horizon].reshape(-1))
    return {horizon: np.concatenate(block) for horizon, block in blocks.items()}


def merged(wanted: Sequence[dict[int, npt.NDArray[np.bool_]]]) -> dict[int, npt.NDArray[np.bool_]]:
    """Put the labels of several folds behind each other."""
    return {horizon: np.concatenate([each[horizon] for each in wanted]) for horizon in HORIZONS}
