"""What a run used, priced: GB·s of the main host and of each function, calls, traffic, starts, idling.

Main memory is billed while it answers where functions are billed by call, and from its start to now where
lifetimes are billed; the simulator and the planner do the same. A call's time is rounded as the table
says. Calls of one function are taken to be as long as their mean, since counters keep no single times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from remoe_edge.placement.bill import Bill, Meter
from remoe_edge.placement.price import PER_CALL, PriceTable


@dataclass(frozen=True)
class MainUse:
    """Hold what the main host used: memory, apart for CPU and GPU, and milliseconds."""

    cpu_bytes: float
    gpu_bytes: float = 0.0
    busy_ms: float = 0.0
    life_ms: float = 0.0
    start_ms: float = 0.0
    answers: int = 0


@dataclass(frozen=True)
class FunctionUse:
    """Hold what one function used, all its replicas together, of `memory_bytes` each.

    held_ms: of leases, over all replicas. start_ms: of replicas that were started.
    """

    memory_bytes: float
    held_ms: float = 0.0
    start_ms: float = 0.0
    starts: int = 0
    calls: int = 0
    compute_ms: float = 0.0
    egress_bytes: float = 0.0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> FunctionUse:
        """Take it from what an engine tells of a function."""
        return cls(**{name: told[name] for name in cls.__dataclass_fields__ if name in told})


@dataclass(frozen=True)
class GbSeconds:
    """Hold memory × time, in the price table's GB, as it is billed."""

    busy: float = 0.0
    idle: float = 0.0
    starts: float = 0.0


@dataclass(frozen=True)
class Metered:
    """Hold a bill and what it was made from. gb_s: of `main_cpu`, `main_gpu` and each function."""

    table: PriceTable
    bill: Bill
    answers: int
    gb_s: Mapping[str, GbSeconds] = field(default_factory=dict)
    functions: Mapping[str, FunctionUse] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give plain values, and the cost of an answer."""
        return {
            "prices": self.table.name,
            "currency": self.table.currency,
            "bill": self.bill.as_dict(),
            "answers": self.answers,
            "cost_an_answer": self.bill.total / self.answers if self.answers else None,
            "gb_s": {name: asdict(each) for name, each in self.gb_s.items()},
            "functions": {name: asdict(each) for name, each in self.functions.items()},
        }


def metered(table: PriceTable, main: MainUse, functions: Mapping[str, FunctionUse]) -> Metered:
    """Bill a main host and its functions by a price table."""
    meter, price = Meter(table), table.function
    per_call = price.billing == PER_CALL
    started_ms = main.start_ms if price.cold_start_billed else 0.0
    main_ms = main.busy_ms + started_ms if per_call else main.life_ms
    meter.main(main.cpu_bytes, main.gpu_bytes, main_ms)
    gb_s = {
        "main_cpu": GbSeconds(_gb_s(table, main.cpu_bytes, main_ms)),
        "main_gpu": GbSeconds(_gb_s(table, main.gpu_bytes, main_ms)),
    }
    for name, each in functions.items():
        busy_ms = idle_ms = started_ms = 0.0
        if per_call:
            mean_ms = each.compute_ms / each.calls if each.calls else 0.0
            busy_ms = each.calls * price.billed_ms(mean_ms) if each.calls else 0.0
            idle_ms = max(0.0, each.held_ms - each.compute_ms)
            if price.cold_start_billed and each.starts:
                started_ms = each.starts * price.billed_ms(each.start_ms / each.starts)
                meter.cold_start(each.memory_bytes, each.start_ms / each.starts, each.starts)
            meter.calls(each.memory_bytes, mean_ms, each.calls)
            meter.idle(each.memory_bytes, idle_ms)
        else:  # a life begins with its start; a table may leave that out
            started_ms = each.start_ms if price.cold_start_billed else 0.0
            busy_ms = price.billed_ms(each.held_ms) if each.held_ms else 0.0
            meter.calls(each.memory_bytes, 0.0, each.calls)  # their fee
            meter.lifetime(each.memory_bytes, each.held_ms) if each.held_ms else None
            meter.lifetime(each.memory_bytes, started_ms) if started_ms else None
        meter.egress(each.egress_bytes)
        memory = each.memory_bytes
        gb_s[name] = GbSeconds(*(_gb_s(table, memory, ms) for ms in (busy_ms, idle_ms, started_ms)))
    return Metered(table, meter.bill(), main.answers, gb_s, dict(functions))


def _gb_s(table: PriceTable, n_bytes: float, ms: float) -> float:
    return n_bytes / table.gb_bytes * ms / 1000
