"""What a request is expected to cost under a placement: the meter fed with expectations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from remoe_edge.placement.bill import Bill, Meter
from remoe_edge.placement.price import PriceTable
from remoe_edge.placement.times import Times, Timing, rounds


@dataclass(frozen=True)
class Starts:
    """Hold what starting costs each request, on the average: 0 where all is warm.

    function_ms: of a replica. The main host boots and then loads its memory.
    """

    function_ms: float = 0.0
    main_boot_ms: float = 0.0
    load_bytes_per_s: float = math.inf

    def main_ms(self, main_bytes: float) -> float:
        """Give the time until a main host can compute."""
        return self.main_boot_ms + 1000 * main_bytes / self.load_bytes_per_s


WARM = Starts()


def cost_of(
    timing: Timing, table: PriceTable, main_bytes: int, y: Sequence[float], z: Sequence[int],
    row_ms: Sequence[float], times: Times, starts: Starts = WARM,
) -> Bill:  # fmt: skip
    """Bill one request: y bytes and z replicas of each group, and what is started for it.

    How often that is, and how long functions wait idle, depends on when requests come: the simulator
    bills what happens.
    """
    request, meter = timing.request, Meter(table)
    shape, n_answer = request.shape, request.workload.n_answer
    whole_ms = times.request_ms(n_answer)
    if table.function.cold_start_billed:
        start_ms = starts.main_ms(main_bytes)
        meter.main(main_bytes - shape.gpu_bytes, shape.gpu_bytes, start_ms)
    meter.main(main_bytes - shape.gpu_bytes, shape.gpu_bytes, whole_ms)
    for i, load in enumerate(timing.loads):
        prompt_rows = sum(load.prompt_rows)
        if prompt_rows > 0:
            working = min(z[i], len(load.prompt_rows))
            one_way = prompt_rows * shape.row_bytes / 2
            # A prompt that is expected to send less than a row calls that often.
            calls = min(1.0, prompt_rows) * working * rounds(one_way, working, timing.payload_bytes)
            meter.calls(y[i], prompt_rows * row_ms[i] / calls, calls)
        if load.chance > 0 and n_answer > 1:
            several = min(float(z[i]), max(1.0, load.rows / load.chance))
            calls = load.chance * several
            meter.calls(y[i], load.rows * row_ms[i] / calls, calls * (n_answer - 1))
        meter.cold_start(y[i], starts.function_ms, z[i] if starts.function_ms else 0)
        meter.lifetime(y[i] * z[i], whole_ms)
        sent = prompt_rows + (n_answer - 1) * load.rows
        meter.egress(sent * shape.row_bytes / 2)
    return meter.bill()
