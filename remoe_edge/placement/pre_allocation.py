"""Main-model pre-allocation (Remoe's MMP): the least main memory whose worst case keeps the targets.

Of n tokens, at most √(3n/2) + n·K/E reach one expert, with 95 % confidence (Hoeffding, each expert
equally likely). The local fraction b walks down from 1 while the worst case of both times holds; all
that is not local is then at the fastest function there is. The memory is granted before a prompt is
known, so that loading the main host and predicting do not wait for each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from remoe_edge.errors import BudgetError
from remoe_edge.placement.request import Request
from remoe_edge.placement.schedule import bound as lpt_bound
from remoe_edge.placement.times import Times, rounds
from remoe_edge.units import mib


@dataclass(frozen=True)
class Fastest:
    """Hold the best that functions can do: ms of a row at the largest size, and replicas at most."""

    row_ms: float
    n_replicas: int
    payload_bytes: int = 0


@dataclass(frozen=True)
class PreAllocation:
    """Hold the answer: experts of every layer that stay local, and the memory for them."""

    n_local: int
    main_bytes: int
    worst: Times


def most_rows(n_tokens: int, n_experts: int, top_k: int) -> float:
    """Bound the tokens, of n, that reach one expert."""
    return min(n_tokens, math.sqrt(1.5 * n_tokens) + n_tokens * top_k / n_experts)


def worst_case(request: Request, n_local: int, fastest: Fastest) -> Times:
    """Bound the times with `n_local` experts of every layer local, chance being against us."""
    shape, speed, link, work = request.shape, request.speed, request.link, request.workload
    n, k, n_remote = work.n_prompt, shape.top_k, shape.n_experts - n_local
    each = most_rows(n, shape.n_experts, k)
    here = min(n * k, n_local * each) * speed.prefill_row_ms
    there = 0.0
    if n_remote:
        rows, z = min(n * k, n_remote * each), min(fastest.n_replicas, n_remote)
        # LPT: no replica has more than this.
        longest = min(rows, min(lpt_bound(z) * max(rows / z, each), rows / z + each))
        trips = rounds(rows * shape.row_bytes / 2, z, fastest.payload_bytes)
        there = trips * link.round_trip_ms + link.transfer_ms(rows * shape.row_bytes)
        there += longest * fastest.row_ms
    ttft = speed.prefill_base_ms + n * speed.prefill_dense_each_ms
    ttft += shape.n_layers * max(here, there)
    # Over an answer, the rows of an average token.
    reach = most_rows(work.n_answer, shape.n_experts, k) / work.n_answer
    here = min(k, n_local * reach) * speed.decode_row_ms
    token = here
    if n_remote:
        rows = min(k, n_remote * reach)
        called = min(1.0, rows)
        z = min(fastest.n_replicas, n_remote)
        there = link.round_trip_ms + link.transfer_ms(rows / called * shape.row_bytes)
        there += max(1.0, rows / called / z) * fastest.row_ms
        token = (1 - called) * here + called * max(here, there)
    return Times(ttft, speed.decode_dense_ms + shape.n_layers * token)


def pre_allocate(request: Request, fastest: Fastest, main_max_bytes: int) -> PreAllocation:
    """Walk b = n_local ÷ E down from the most that fits until the worst case no longer holds.

    Where all local is too slow by itself, the walk goes on to where functions help. Raises BudgetError
    where nothing holds, naming the times in the way.
    """
    shape = request.shape
    room = main_max_bytes - shape.fixed_bytes
    most = min(shape.n_experts, room // (shape.n_layers * shape.expert_bytes))
    if most < 0:
        raise BudgetError(
            f"the main host needs {mib(shape.fixed_bytes)} without any expert, and may have "
            f"{mib(main_max_bytes)}"
        )
    found = None
    for n_local in range(int(most), -1, -1):
        worst = worst_case(request, n_local, fastest)
        if request.slo.holds(worst.tpot_ms, worst.ttft_ms):
            found = PreAllocation(n_local, shape.main_bytes(n_local), worst)
        elif found is not None:
            break
    if found is None:
        worst = worst_case(request, int(most), fastest)
        raise BudgetError(
            f"the targets are out of reach at worst, wherever experts are: with {most} of "
            f"{shape.n_experts} experts of a layer local, a token takes "
            f"{worst.tpot_ms:.0f} ms and a prompt of "
            f"{request.workload.n_prompt} tokens {worst.ttft_ms:.0f} ms"
        )
    return found
