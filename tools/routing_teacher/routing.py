"""Recorded routing as the teacher reads it: arrays by token and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remoe_edge import _core
from remoe_edge.profile.folds import sessions
from remoe_edge.routing.trace import Trace

Floats = npt.NDArray[np.float32]


@dataclass
class Session:
    """Hold one run from a cold start, each array by [token, layer, ...]."""

    chosen: npt.NDArray[np.int64]  # [..., k]
    log_probs: Floats | None  # [..., expert]
    scores: Floats  # [..., expert] the policy's, with links learned on line

    def inputs(self, begin: int, end: int) -> Floats:
        """Lay out what the teacher is told of some tokens: chosen, and how probable if known."""
        chosen = self.chosen[begin:end]
        found = np.zeros((*chosen.shape[:2], self.scores.shape[2]), np.float32)
        np.put_along_axis(found, chosen, 1, axis=2)
        if self.log_probs is None:
            return found
        return np.concatenate([found, self.log_probs[begin:end]], axis=2)

    def soon(self, begin: int, end: int, horizons: Sequence[int]) -> Floats:
        """Say which experts come within each horizon, as the mean over horizons."""
        shape = end - begin, *self.scores.shape[1:]
        total, found = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        for ahead in range(1, max(horizons) + 1):
            last = min(end + ahead, len(self.chosen)) - (begin + ahead)
            if last > 0:
                np.put_along_axis(
                    found[:last], self.chosen[begin + ahead : begin + ahead + last], True, axis=2
                )
            total += found * np.float32(horizons.count(ahead))
        return total / len(horizons)


def session(trace: Trace, n_slots: int, profile: bytes | None) -> Session:
    """Read one run from a cold start, and score it as the policy does with so many slots."""
    shape = trace.total_tokens, trace.n_layers
    probs = None
    if trace.has_probs():
        rows = np.stack([trace.probs(event)[-1] for event in range(trace.n_events)])
        probs = np.log(rows + np.float32(1 / 16384)).reshape(*shape, -1) / 4 + 1
    scores = _core.policy_scores(
        trace.columns(), trace.n_layers, trace.n_experts, profile, n_slots
    )  # fmt: skip
    return Session(
        trace.experts.reshape(*shape, trace.top_k).astype(np.int64),
        probs,
        scores.reshape(*shape, trace.n_experts),
    )


def cold_sessions(traces: Sequence[Trace], n_slots: int, profile: bytes | None) -> list[Session]:
    """Cut traces as `remoe-edge profile` does and read each part."""
    return [
        session(part, n_slots, profile) for trace in traces for part in sessions(trace.per_token())
    ]
