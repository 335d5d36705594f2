"""How many of an event's experts are missing, at a number of slots: from a trace, figures or a bound.

Every source gives the same thing: per MoE layer, the chances of 0, 1 … top-k misses in one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.routing.replay import misses_by_event
from remoe_edge.routing.trace import Trace

Chances = npt.NDArray[np.float64]  # [layers, top_k + 1], rows sum to 1

# Tokens that fill the cache uncounted, and that are counted, at most.
WARM_TOKENS, COUNTED_TOKENS = 256, 512
# A shorter trace counts many experts' first use as a miss.
ENOUGH_TOKENS = 384

# Experts missing of those asked for, by share of the experts resident: LRU on Qwen3-30B-A3B (128
# experts, top-8), mean of three kinds of text. Nothing is said of other models.
PUBLISHED = "LRU on Qwen3-30B-A3B"
_PUBLISHED = ((0.0, 1.0), (0.10, 0.495), (0.25, 0.201), (0.50, 0.0475), (1.0, 0.0))
# The same, as far as a model is like it up to an exponent: never 0, so that it has a logarithm.
SHAPE = (*_PUBLISHED[:-1], (1.0, 0.001))


class MissModel(Protocol):
    """Where a plan gets its misses."""

    def chances(self, n_slots: int) -> Chances:
        """Give the chances of each number of misses of an event, per layer."""
        ...

    @property
    def source(self) -> str:
        """Say in a few words what this rests on."""
        ...


def mean_misses(chances: Chances) -> float:
    """Give the misses of one token over all layers."""
    return float((chances @ np.arange(chances.shape[1])).sum())


@dataclass
class Replayed:
    """Misses of a trace under the engine's own cache and policy; each size is replayed once."""

    trace: Trace
    policy: str
    profile: bytes | None = None
    known: dict[int, Chances] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Name the trace and the policy."""
        return f"{self.policy} on {self.trace.path}"

    def chances(self, n_slots: int) -> Chances:
        """Replay at that size; see `MissModel`."""
        if n_slots not in self.known:
            self.known[n_slots] = self._replay(n_slots)
        return self.known[n_slots]

    def _replay(self, n_slots: int) -> Chances:
        missed = misses_by_event(self.trace, n_slots, self.policy, self.profile)
        return chances_of(self.trace, missed, first_counted(self.trace))

    def touched(self, n_tokens: int) -> float:
        """Count the experts of a layer that n tokens in a row use, mean over layers and places."""
        routed = self.trace.routed()
        n = min(n_tokens, routed.shape[1])
        starts = np.linspace(0, routed.shape[1] - n, 8).astype(int)
        found = [len(np.unique(layer[at : at + n])) for layer in routed for at in starts]
        return float(np.mean(found))


def chances_of(
    trace: Trace, missed: npt.NDArray[np.integer], first: int, last: int | None = None
) -> Chances:
    """Turn the misses of events `first` to before `last` into each layer's chances."""
    counts = np.zeros((trace.n_layers, trace.top_k + 1))
    np.add.at(counts, (trace.layer[first:last], np.minimum(missed[first:last], trace.top_k)), 1)
    return np.asarray(counts / counts.sum(1, keepdims=True))


def prepare(trace: Trace, n_layers: int, n_experts: int, top_k: int, fingerprint: str) -> Trace:
    """Check that a trace is of this model, and cut it to single tokens and a length worth replaying.

    Raises InputError for a trace of another model, or one too short to judge by.
    """
    shape = (trace.n_layers, trace.n_experts, trace.top_k)
    if shape != (n_layers, n_experts, top_k):
        raise InputError(
            f"{trace.path} is a trace of another model: {shape[0]} layers of {shape[1]} experts, "
            f"top-{shape[2]}; this one has {n_layers} of {n_experts}, top-{top_k}"
        )
    if trace.fingerprint and fingerprint and trace.fingerprint != fingerprint:
        raise InputError(
            f"{trace.path} is a trace of another model: fingerprint {trace.fingerprint[:12]}, this "
            f"one's is {fingerprint[:12]}"
        )
    single = trace if (trace.n_tokens == 1).all() else trace.per_token()
    steps = single.total_tokens
    if steps < 32:
        raise InputError(f"{trace.path} has {steps} tokens; a plan wants 32 or more")
    return single.tokens(0, min(steps, WARM_TOKENS + COUNTED_TOKENS))


def first_counted(trace: Trace) -> int:
    """Find the first event after the tokens that only warm the cache, a third of them at most."""
    warm = min(WARM_TOKENS, trace.total_tokens // 3)
    starts = np.flatnonzero(trace.layer == 0)
    return int(starts[warm])


@dataclass(frozen=True)
class Published:
    """Misses by published figures, for a model of which there is no trace."""

    n_layers: int
    top_k: int
    total_experts: int

    @property
    def source(self) -> str:
        """Say whose figures they are."""
        return f"published figures of another model ({PUBLISHED}): no trace given"

    def chances(self, n_slots: int) -> Chances:
        """Take every expert to miss by itself, as often as published; see `MissModel`."""
        at = n_slots / self.total_experts
        share = float(np.interp(at, [x for x, _ in _PUBLISHED], [y for _, y in _PUBLISHED]))
        return np.tile(_binomial(self.top_k, share), (self.n_layers, 1))


@dataclass(frozen=True)
class NoReuse:
    """The worst case: routing without any locality, and chance against us.

    After Remoe's pre-allocation: of n tokens at most √(3n/2) + n·K/E reach one expert, with 95 %
    confidence (Hoeffding, each expert equally likely); the experts that are not resident are hit
    that often, all of them.
    """

    n_layers: int
    n_experts: int
    top_k: int
    n_tokens: int

    @property
    def source(self) -> str:
        """Say what it assumes."""
        return f"no reuse, 95 % bound over answers of {self.n_tokens} tokens"

    def chances(self, n_slots: int) -> Chances:
        """Bound the misses of a token and layer; see `MissModel`."""
        missing = max(0.0, 1 - n_slots / (self.n_layers * self.n_experts)) * self.n_experts
        bound = min(float(self.top_k), missing * expert_load(self) / self.n_tokens)
        # A fraction is a mixture of the two whole numbers beside it.
        low = min(self.top_k - 1, math.floor(bound))
        row = np.zeros(self.top_k + 1)
        row[low], row[low + 1] = low + 1 - bound, bound - low
        return np.tile(row, (self.n_layers, 1))


def expert_load(case: NoReuse) -> float:
    """Bound the tokens of n that reach one expert, at most n. Source: arXiv 2512.18674."""
    n = case.n_tokens
    return min(float(n), math.sqrt(1.5 * n) + n * case.top_k / case.n_experts)


def _binomial(n: int, p: float) -> Chances:
    row: Sequence[float] = [math.comb(n, m) * p**m * (1 - p) ** (n - m) for m in range(n + 1)]
    return np.asarray(row, np.float64)
