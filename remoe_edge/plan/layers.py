"""Would a pool per layer beat one pool for all? Share out by the Lagrangian, then replay both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from remoe_edge.placement.allocate import whole_slots
from remoe_edge.placement.fit import Fit, fit_latency
from remoe_edge.plan.latency import Machine
from remoe_edge.plan.misses import Chances, chances_of, first_counted, mean_misses
from remoe_edge.routing.replay import misses_by_event
from remoe_edge.routing.trace import Trace

_SIZES = 8  # cache sizes that a layer's curve is fitted to


@dataclass(frozen=True)
class PoolOutcome:
    """Hold what one way of sharing gave on the tokens judged. Milliseconds per token."""

    name: str
    slots: tuple[int, ...]  # per layer; one number for a common pool
    misses: float
    tpot_ms: float


@dataclass(frozen=True)
class LayerComparison:
    """Hold the ways of sharing `n_slots`, the best first, and how well the layers' curves fitted."""

    n_slots: int
    outcomes: tuple[PoolOutcome, ...]
    fit_relative: float  # mean over layers of the relative error

    @property
    def winner(self) -> str:
        """Name the best way."""
        return self.outcomes[0].name


GLOBAL, EVEN, LAGRANGIAN = "one pool", "even per layer", "lagrangian per layer"


def compare_pools(
    machine: Machine, trace: Trace, policy: str, n_slots: int, profile: bytes | None = None
) -> LayerComparison | None:
    """Fit and share out on the first half of the counted tokens, judge on the second.

    None where a pool per layer is impossible (fewer than top-k slots for each), or where all fits.
    """
    k, n_layers = trace.top_k, trace.n_layers
    most = [layer.n_experts for layer in machine.sizes.layers]
    if not n_layers * k <= n_slots < sum(most):
        return None
    parts = [_one_layer(trace, layer) for layer in range(n_layers)]
    # Half of the counted steps, in events of one layer.
    n_steps = len(parts[0].layer)
    warm = first_counted(trace) // n_layers
    middle = (warm + n_steps) // 2

    def curve(layer: int) -> tuple[list[float], list[float]]:
        sizes = sorted({int(y) for y in np.linspace(k, most[layer], _SIZES)})
        times = []
        for y in sizes:
            missed = misses_by_event(parts[layer], y, policy)
            times.append(_layer_ms(machine, layer, chances_of(parts[layer], missed, warm, middle)))
        return [float(y) for y in sizes], times

    fits: list[Fit] = [fit_latency(*curve(layer)) for layer in range(n_layers)]
    shared = whole_slots(fits, n_slots, k, most)

    def apart(name: str, slots: Sequence[int]) -> PoolOutcome:
        rows = [
            chances_of(part, misses_by_event(part, y, policy), middle)[0]
            for part, y in zip(parts, slots, strict=True)
        ]
        chances = np.asarray(rows)
        return PoolOutcome(name, tuple(slots), mean_misses(chances), machine.tpot_ms(chances))

    together = chances_of(
        trace, misses_by_event(trace, n_slots, policy, profile), middle * n_layers
    )
    outcomes = [
        PoolOutcome(GLOBAL, (n_slots,), mean_misses(together), machine.tpot_ms(together)),
        apart(EVEN, _even(n_slots, most)),
        apart(LAGRANGIAN, shared),
    ]
    return LayerComparison(
        n_slots,
        tuple(sorted(outcomes, key=lambda each: each.tpot_ms)),
        float(np.mean([fit.relative for fit in fits])),
    )


def _layer_ms(machine: Machine, layer: int, chances: Chances) -> float:
    rows = np.zeros((machine.sizes.n_layers, chances.shape[1]))
    rows[:, 0] = 1
    rows[layer] = chances[0]
    return float(machine.layer_ms(rows)[layer])


def _even(n_slots: int, most: Sequence[int]) -> list[int]:
    slots = [min(top, n_slots // len(most)) for top in most]
    for i in range(len(most)):
        slots[i] += min(most[i] - slots[i], n_slots - sum(slots), 1)
    return slots


def _one_layer(trace: Trace, layer: int) -> Trace:
    """Cut one layer's events out of a trace of single tokens, as a trace of one layer."""
    rows = np.flatnonzero(trace.layer == layer)
    at = trace.offsets[rows][:, None] + np.arange(trace.top_k)
    return replace(
        trace,
        n_layers=1,
        step=trace.step[rows],
        layer=np.zeros(len(rows), np.uint16),
        phase=trace.phase[rows],
        n_tokens=trace.n_tokens[rows],
        offsets=np.arange(0, len(rows) * trace.top_k + 1, trace.top_k, dtype=np.int64),
        experts=trace.experts[at].reshape(-1),
        ids_at=trace.ids_at[rows],
        probs_at=trace.probs_at[rows],
        n_prob_tokens=trace.n_prob_tokens[rows],
    )
