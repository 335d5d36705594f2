"""Find the least memory whose predicted times meet the targets, and lay the whole curve open.

After Remoe's main-model pre-allocation: memory is walked down from the most there is while the
worst case holds; the same walk with expected misses gives the second answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remoe_edge.errors import BudgetError
from remoe_edge.placement.fit import Fit, fit_latency
from remoe_edge.plan.latency import Machine, touched_at_worst, touched_by_chance
from remoe_edge.plan.layers import LayerComparison, compare_pools
from remoe_edge.plan.misses import Chances, MissModel, NoReuse, Replayed, mean_misses
from remoe_edge.units import MIB, mib

# Python, llama.cpp's own bookkeeping and what a thread or two need, beside the named buffers.
REST_BYTES = 64 * MIB
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_RESOLUTION = 200  # the answer is exact to this part of all experts


@dataclass(frozen=True)
class Targets:
    """Hold what is asked for; None where nothing is. Milliseconds, tokens."""

    tpot_ms: float | None = None
    ttft_ms: float | None = None
    n_prompt: int = 128
    n_answer: int = 256


@dataclass(frozen=True)
class Point:
    """Hold the predictions at one cache size. Bytes, milliseconds."""

    n_slots: int
    share: float
    cache_bytes: int
    total_bytes: int
    misses: float  # of a token
    bytes_per_token: float
    tpot_ms: float
    bound_tpot_ms: float
    floor_ms: float  # if all reads overlapped with all computing
    cold_ttft_ms: float  # nothing resident
    warm_ttft_ms: float  # a cache full of another prompt's experts
    bound_ttft_ms: float


@dataclass(frozen=True)
class Plan:
    """Hold the curve and the answers: the smallest budgets, None where there is none."""

    machine: Machine
    source: str
    bound_source: str
    memory_bytes: int
    targets: Targets
    points: tuple[Point, ...]
    fit: Fit | None  # of tpot_ms over cache MiB
    expected: Point | None
    bound: Point | None
    pools: tuple[LayerComparison, ...]
    notes: tuple[str, ...]


def fixed_bytes(machine: Machine) -> int:
    """Add up what a process takes beside the expert cache."""
    sizes = machine.sizes
    return sizes.dense_bytes + sizes.kv_bytes + machine.compute.compute_bytes + REST_BYTES


def make_plan(
    machine: Machine,
    misses: MissModel,
    memory_bytes: int,
    targets: Targets,
    *,
    pools: bool = True,
    notes: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Predict over all cache sizes that fit `memory_bytes`, and find the smallest that suffice.

    Raises BudgetError where the memory is below the floor, or a target cannot be expected within
    it; a worst case out of reach is no error, `bound` is None then.
    """
    sizes = machine.sizes
    most = sizes.slots_for(memory_bytes - fixed_bytes(machine))
    if most < sizes.floor_slots:
        least = sizes.cache_bytes(sizes.floor_slots)
        raise BudgetError(
            f"{mib(memory_bytes)} are below the floor of {mib(fixed_bytes(machine) + least)}: dense "
            f"weights {mib(sizes.dense_bytes)}, KV cache {mib(sizes.kv_bytes)}, compute buffers "
            f"{mib(machine.compute.compute_bytes)}, {mib(REST_BYTES)} for the program and "
            f"{mib(least)} for one token's experts of a layer"
        )
    predict = Predictor(machine, misses, targets)
    grid = {sizes.floor_slots, most}
    grid |= {round(share * sizes.total_experts) for share in _SHARES}
    points = []
    for n_slots in sorted(n for n in grid if sizes.floor_slots <= n <= most):
        progress(f"{n_slots} of {sizes.total_experts} experts")
        points.append(predict(n_slots))
    expected = bound = None
    if targets.tpot_ms is not None or targets.ttft_ms is not None:
        expected = _least(points, predict, lambda point: meets(point, targets))
        bound = _least(points, predict, lambda point: meets_at_worst(point, targets))
        if expected is None:
            raise BudgetError(_unreachable(machine, points[-1], targets))
    compared = []
    if pools and isinstance(misses, Replayed):
        for n_slots in _pool_sizes(points, expected):
            progress(f"pools of {n_slots}")
            found = compare_pools(machine, misses.trace, misses.policy, n_slots, misses.profile)
            compared += [found] if found is not None else []
    fit = None
    if len(points) >= 4:
        fit = fit_latency([p.cache_bytes / MIB for p in points], [p.tpot_ms for p in points])
    return Plan(
        machine, misses.source, predict.worst.source, memory_bytes, targets, tuple(points), fit,
        expected, bound, tuple(compared), notes,
    )  # fmt: skip


def meets(point: Point, targets: Targets) -> bool:
    """Say whether the expected times keep the targets."""
    return _within(point.tpot_ms, targets.tpot_ms) and _within(point.warm_ttft_ms, targets.ttft_ms)


def meets_at_worst(point: Point, targets: Targets) -> bool:
    """Say whether the worst case keeps the targets."""
    return _within(point.bound_tpot_ms, targets.tpot_ms) and _within(
        point.bound_ttft_ms, targets.ttft_ms
    )


def _within(value: float, limit: float | None) -> bool:
    return limit is None or value <= limit


class Predictor:
    """Predict the times at a number of slots, each once."""

    def __init__(self, machine: Machine, misses: MissModel, targets: Targets) -> None:
        sizes = machine.sizes
        self.machine, self.misses, self.targets = machine, misses, targets
        self.worst = NoReuse(sizes.n_layers, sizes.n_experts, sizes.top_k, targets.n_answer)
        self._touched = touched_by_chance(sizes.n_experts, sizes.top_k)
        if isinstance(misses, Replayed):
            typical = misses.touched(targets.n_prompt)
            self._touched = lambda n: typical
        self._touched_at_worst = touched_at_worst(sizes.n_experts, sizes.top_k)
        self._known: dict[int, Point] = {}

    def __call__(self, n_slots: int) -> Point:
        if n_slots not in self._known:
            self._known[n_slots] = self._predict(n_slots)
        return self._known[n_slots]

    def _predict(self, n_slots: int) -> Point:
        machine, n_prompt = self.machine, self.targets.n_prompt
        sizes = machine.sizes
        share = n_slots / sizes.total_experts
        chances: Chances = self.misses.chances(n_slots)
        cache_bytes = sizes.cache_bytes(n_slots)
        tpot_ms = machine.tpot_ms(chances)
        return Point(
            n_slots=n_slots,
            share=share,
            cache_bytes=cache_bytes,
            total_bytes=cache_bytes + fixed_bytes(machine),
            misses=mean_misses(chances),
            bytes_per_token=machine.bytes_per_token(chances),
            tpot_ms=tpot_ms,
            # What was seen is possible, whatever the bound assumes.
            bound_tpot_ms=max(tpot_ms, machine.tpot_ms(self.worst.chances(n_slots))),
            floor_ms=machine.floor_ms(chances),
            cold_ttft_ms=machine.ttft_ms(n_prompt, 0.0, self._touched),
            warm_ttft_ms=machine.ttft_ms(n_prompt, share, self._touched),
            bound_ttft_ms=machine.ttft_ms(n_prompt, 0.0, self._touched_at_worst),
        )


def _least(
    points: list[Point], predict: Callable[[int], Point], good: Callable[[Point], bool]
) -> Point | None:
    """Walk down from the largest cache while it is good enough, then halve the last step."""
    found = None
    for point in reversed(points):
        if not good(point):
            break
        found = point
    if found is None or found is points[0]:
        return found
    low = points[points.index(found) - 1].n_slots
    step = max(1, round(found.n_slots / found.share / _RESOLUTION))
    while found.n_slots - low > step:
        middle = predict((found.n_slots + low) // 2)
        if good(middle):
            found = middle
        else:
            low = middle.n_slots
    return found


def _pool_sizes(points: list[Point], expected: Point | None) -> list[int]:
    """Compare pools at the answer, else where a quarter and half of the experts fit."""
    if expected is not None:
        return [expected.n_slots]
    return [point.n_slots for point in points if point.share in (0.25, 0.5)]


def _unreachable(machine: Machine, best: Point, targets: Targets) -> str:
    """Say in a line what is the best that can be had, and what stands in the way."""
    where = f"with {mib(best.cache_bytes)} of experts ({best.share:.0%}), {mib(best.total_bytes)} in all"
    if not _within(best.tpot_ms, targets.tpot_ms):
        if not _within(machine.resident_ms, targets.tpot_ms):
            why = f"computing alone takes {machine.resident_ms:.0f} ms here"
        else:
            why = (
                f"{best.misses:.1f} misses a token read {mib(best.bytes_per_token)} at "
                f"{machine.bandwidth / MIB:.0f} MiB/s; more memory would help"
            )
        return (
            f"{targets.tpot_ms:g} ms per token are out of reach: the best is {best.tpot_ms:.0f} ms "
            f"{where}; {why}"
        )
    return (
        f"a first token after {targets.ttft_ms:g} ms is out of reach: the best for a prompt of "
        f"{targets.n_prompt} tokens is {best.warm_ttft_ms:.0f} ms {where}"
    )
