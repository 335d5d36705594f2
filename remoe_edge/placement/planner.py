"""The stages in a row: pre-allocation, utility, memory, replicas, and what the result costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import BudgetError, InputError
from remoe_edge.placement.activation import Floats, activation_matrix
from remoe_edge.placement.bill import Bill
from remoe_edge.placement.cost import WARM, Starts, cost_of
from remoe_edge.placement.functions import Group, Load, groups, load
from remoe_edge.placement.latency_curve import Curve, Exponential
from remoe_edge.placement.memory import MemoryAnswer, MemoryProblem, lagrangian
from remoe_edge.placement.pre_allocation import Fastest, PreAllocation, pre_allocate
from remoe_edge.placement.price import LIFETIME, PriceTable
from remoe_edge.placement.replicas import add_replicas
from remoe_edge.placement.request import Request
from remoe_edge.placement.sizes import by_sizes
from remoe_edge.placement.times import Times, Timing
from remoe_edge.placement.utility import split, utility
from remoe_edge.units import mib

FUNCTION_OVERHEAD_BYTES = 64 << 20  # the program of a worker, beside its experts
MOST_REPLICAS = 8
_TIGHTENED = (
    4  # times that the limits are drawn in where layers are slower than their mean function
)


@dataclass(frozen=True)
class PlacedFunction:
    """Hold one function: its experts, memory, replicas, and what is expected of it."""

    group: Group
    memory_bytes: int
    replicas: int
    row_ms: float
    load: Load


@dataclass(frozen=True)
class Placement:
    """Hold a placement and what it is expected to give.

    method: how sizes were chosen. all_local: the bill with every expert on the main host, which has
    the times `all_local_times`.
    """

    request: Request
    table: PriceTable
    pre_allocation: PreAllocation
    n_local: int
    main_bytes: int
    local: tuple[tuple[int, ...], ...]
    functions: tuple[PlacedFunction, ...]
    times: Times
    bill: Bill
    all_local_times: Times
    all_local: Bill
    method: str
    notes: tuple[str, ...] = ()

    @property
    def pays(self) -> bool:
        """Say whether this costs less than everything on the main host."""
        return bool(self.functions) and self.bill.total < self.all_local.total


@dataclass(frozen=True)
class Options:
    """Hold choices that the paper leaves open, or that an experiment leaves out.

    n_local: instead of MMP's. starts: what each request starts; billed where the price table says so, so
    that starting large functions is not free.
    """

    experts_per_function: int | None = None
    most_replicas: int = MOST_REPLICAS
    n_local: int | None = None
    starts: Starts = WARM
    function_overhead_bytes: int = FUNCTION_OVERHEAD_BYTES


def place(
    request: Request,
    table: PriceTable,
    curve: Curve,
    shares: npt.ArrayLike,
    options: Options = Options(),
    *,
    prompt_shares: npt.ArrayLike | None = None,
) -> Placement:
    """Place experts for a predicted activation matrix, [layers, experts].

    Raises BudgetError where the targets are out of reach, InputError for what makes no sense.
    """
    shape = request.shape
    answer = activation_matrix(shares, shape.n_layers, shape.n_experts)
    prompt = None
    if prompt_shares is not None:
        prompt = activation_matrix(prompt_shares, shape.n_layers, shape.n_experts)
    platform = table.function
    largest = platform.sizes()
    fastest = Fastest(float(curve(largest[-1])), options.most_replicas, platform.payload_bytes)
    allocated = pre_allocate(request, fastest, table.main.max_bytes)
    n_local = allocated.n_local if options.n_local is None else options.n_local
    rated = utility(answer, request.workload, shape.top_k, prompt)
    local = split(rated, n_local)
    found = groups(~local, rated, options.experts_per_function)
    loads = [load(group, answer, shape, request.workload) for group in found]
    timing = Timing(request, answer, local, found, loads, platform.payload_bytes)
    sized = _sized(timing, table, curve, options, shape.main_bytes(n_local))
    functions = [
        PlacedFunction(group, int(y), z, float(curve(y)), each)
        for group, y, z, each in zip(found, sized.y, sized.z, loads, strict=True)
    ]
    row_ms = [each.row_ms for each in functions]
    times = timing.times(row_ms, sized.z)
    main_bytes = table.main.size(shape.main_bytes(n_local))
    everything, everything_bytes = split(rated, shape.n_experts), shape.main_bytes(shape.n_experts)
    alone = Timing(request, answer, everything, (), ())
    alone_times = alone.times((), ())
    notes = []
    if table.main.rounded(everything_bytes) > table.main.max_bytes:
        notes.append(
            "no main host holds every expert: the bill beside this one is of none there is"
        )
    return Placement(
        request, table, allocated, n_local, main_bytes,
        tuple(tuple(int(k) for k in np.flatnonzero(row)) for row in local), tuple(functions),
        times, cost_of(timing, table, main_bytes, sized.y, sized.z, row_ms, times, options.starts),
        alone_times,
        cost_of(
            alone, table, table.main.rounded(everything_bytes), (), (), (), alone_times, options.starts
        ),
        sized.method, tuple(notes),
    )  # fmt: skip


def cheapest(
    request: Request, table: PriceTable, curve: Curve, shares: npt.ArrayLike,
    options: Options = Options(), *, steps: int = 8,
) -> tuple[Placement, tuple[Placement, ...]]:  # fmt: skip
    """Try local fractions from MMP's up to all, and give the cheapest placement and all tried.

    MMP asks what memory suffices, not what is cheapest: where calls are dear, more of it costs less.
    """
    tried = [place(request, table, curve, shares, options)]
    least, most = tried[0].n_local, request.shape.n_experts
    for n_local in sorted({round(n) for n in np.linspace(least, most, steps + 1)} - {least}):
        if request.shape.main_bytes(n_local) > table.main.max_bytes:
            continue
        try:
            again = replace(options, n_local=n_local)
            tried.append(place(request, table, curve, shares, again))
        except BudgetError:
            continue  # expected rows may lie otherwise than the worst case's
    return min(tried, key=lambda each: each.bill.total), tuple(tried)


@dataclass(frozen=True)
class _Sized:
    y: tuple[float, ...]
    z: tuple[int, ...]
    method: str


def _sized(
    timing: Timing, table: PriceTable, curve: Curve, options: Options, main_bytes: int
) -> _Sized:
    """Choose memory with one replica each; where no memory suffices, add replicas and choose again."""
    if not timing.groups:
        return _Sized((), (), "no functions")
    least = [
        group.bytes(timing.request.shape, options.function_overhead_bytes)
        for group in timing.groups
    ]
    sizes = np.asarray(table.function.sizes(), np.float64)
    if max(least) > sizes[-1]:
        raise InputError(
            f"a layer's {len(timing.groups[int(np.argmax(least))].experts)} remote experts need "
            f"{mib(max(least))}, and the largest function has {mib(sizes[-1])}: put fewer into one"
        )
    z = [1] * len(timing.groups)
    answer = _memory(timing, table, curve, least, sizes, z, main_bytes, options.starts.function_ms)
    if answer is None:
        top = [float(curve(sizes[-1]))] * len(z)
        grown = add_replicas(timing, top, timing.request.slo, options.most_replicas)
        if grown is None:
            times = timing.times(top, [options.most_replicas] * len(z))
            raise BudgetError(
                f"the targets are out of reach with {options.most_replicas} replicas of the largest "
                f"functions: {times.ttft_ms:.0f} ms to the first token, {times.tpot_ms:.0f} ms a token"
            )
        z = grown
        answer = _memory(
            timing, table, curve, least, sizes, z, main_bytes, options.starts.function_ms
        )
    if answer is None:  # only the fastest sizes keep the targets
        return _Sized((float(sizes[-1]),) * len(z), tuple(z), "largest")
    method, found = answer
    return _Sized(tuple(found.y.tolist()), tuple(z), method)


def _memory(
    timing: Timing, table: PriceTable, curve: Curve, least: Sequence[int], sizes: Floats,
    z: Sequence[int], main_bytes: int, start_ms: float,
) -> tuple[str, MemoryAnswer] | None:  # fmt: skip
    """Solve the memory problem; draw the limits in while a layer's slowest function breaks them."""
    slo = timing.request.slo
    drawn_in = [0.0, 0.0]
    for _ in range(_TIGHTENED):
        problem = memory_problem(
            timing, table, curve, least, float(sizes[-1]), z, main_bytes, drawn_in, start_ms
        )
        method, answer = solve(problem, sizes)
        if answer is None:
            return None
        times = timing.times([float(t) for t in curve(answer.y)], z)
        if slo.holds(times.tpot_ms, times.ttft_ms):
            return method, answer
        drawn_in[0] += max(0.0, times.ttft_ms - (slo.ttft_ms or np.inf)) * 1.01
        drawn_in[1] += max(0.0, times.tpot_ms - (slo.tpot_ms or np.inf)) * 1.01
    return None


def solve(problem: MemoryProblem, sizes: Floats) -> tuple[str, MemoryAnswer | None]:
    """Take the Lagrangian where the cost is convex, else the search of sizes; say which.

    The Lagrangian's sizes are rounded up to what can be had, and single functions moved after that.
    """
    if isinstance(problem.curve, Exponential):
        smooth = lagrangian(problem)
        if smooth is None:
            return "lagrangian", None
        if smooth.convex:
            whole = by_sizes(problem, sizes, smooth.y)
            if whole is None:
                return "lagrangian", None
            return "lagrangian", replace(whole, bound=smooth.bound, convex=True)
    return "sizes", by_sizes(problem, sizes)


def memory_problem(
    timing: Timing, table: PriceTable, curve: Curve, least: Sequence[int], most: float,
    z: Sequence[int], main_bytes: int, drawn_in: Sequence[float] = (0.0, 0.0), start_ms: float = 0.0,
) -> MemoryProblem:  # fmt: skip
    """Write down the memory problem of a timing's groups with z replicas each.

    A layer's functions run side by side and are alike, so each counts its share of the layer's time.
    `drawn_in`: milliseconds by which the limits of TTFT and TPOT are tighter than asked.
    """
    request, n = timing.request, range(len(timing.groups))
    answer = request.workload.n_answer - 1
    beside = np.asarray([len(timing.by_layer[g.layer]) for g in timing.groups], np.float64)
    layer = [timing.layers[g.layer] for g in timing.groups]
    makespan = np.asarray([timing.makespan(i, z[i]) for i in n])
    token = np.asarray([timing.token_rows(i, z[i]) for i in n])
    chance = np.asarray([each.chance for each in layer])
    rows = np.asarray([sum(each.prompt_rows) + answer * each.rows for each in timing.loads])
    prompt_offset = [timing.prompt_wait_ms(i, z[i]) - layer[i].prompt_local_ms for i in n]
    token_offset = [timing.token_wait_ms(i) - layer[i].token_local_ms for i in n]
    here = [sum(getattr(each, name) for each in timing.layers)
            for name in ("prompt_local_ms", "token_local_ms")]  # fmt: skip
    slo, shape, price = request.slo, request.shape, table
    ttft_room = np.inf if slo.ttft_ms is None else slo.ttft_ms - timing.fixed_ttft_ms - here[0]
    tpot_room = np.inf
    if slo.tpot_ms is not None:
        tpot_room = slo.tpot_ms - request.speed.decode_dense_ms - here[1]
    cpu_bytes = table.main.size(main_bytes) - shape.gpu_bytes
    main_rate = cpu_bytes * price.main.cpu_gb_s + shape.gpu_bytes * price.main.gpu_gb_s
    held = np.zeros(len(rows))
    by_call = price.function.billing != LIFETIME
    if by_call and price.function.cold_start_billed:
        held = np.asarray(z, np.float64) * start_ms
    if not by_call:
        # A replica lives as long as the answer takes; the targets say how long that may be.
        times = timing.times([float(curve(most))] * len(rows), z)
        held = np.asarray(z, np.float64) * times.request_ms(request.workload.n_answer)
    return MemoryProblem(
        curve=curve,
        wait_rows=(makespan + answer * chance * token) / beside,
        billed_rows=rows if by_call else np.zeros(len(rows)),
        held_ms=held,
        ttft_rows=makespan / beside,
        ttft_offset_ms=np.asarray(prompt_offset) / beside,
        tpot_rows=token / beside,
        tpot_offset_ms=np.asarray(token_offset) / beside,
        tpot_weight=chance,
        low=np.asarray([table.function.sizes(size)[0] for size in least], np.float64),
        high=np.full(len(rows), most),
        ttft_room_ms=ttft_room - drawn_in[0],
        tpot_room_ms=tpot_room - drawn_in[1],
        main_rate=main_rate / table.gb_bytes / 1000,
        byte_rate=price.function.gb_s / table.gb_bytes / 1000,
    )
