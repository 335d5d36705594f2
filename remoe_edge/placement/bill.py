"""The meter: what a main host and its functions used, and what that costs by a price table.

The planner feeds it expectations, the simulator what happened, and `metered` an engine's counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from remoe_edge.placement.price import PER_CALL, PriceTable


@dataclass(frozen=True)
class Bill:
    """Hold the parts of a bill, in the table's currency."""

    main_cpu: float = 0.0
    main_gpu: float = 0.0
    functions: float = 0.0
    idle: float = 0.0
    cold_starts: float = 0.0
    requests: float = 0.0
    egress: float = 0.0

    @property
    def total(self) -> float:
        """Add up."""
        return float(sum(asdict(self).values()))

    def as_dict(self) -> dict[str, float]:
        """Write it as plain values, with the sum."""
        return {**asdict(self), "total": self.total}


class Meter:
    """Add up use under one price table; `bill` may be asked for at any time."""

    def __init__(self, table: PriceTable) -> None:
        self.table = table
        self._cost = dict.fromkeys(asdict(Bill()), 0.0)

    def main(self, cpu_bytes: float, gpu_bytes: float, ms: float) -> None:
        """Count the main host's granted memory for a time."""
        gb = self.table.gb_bytes
        self._cost["main_cpu"] += self.table.main.cpu_gb_s * cpu_bytes / gb * ms / 1000
        self._cost["main_gpu"] += self.table.main.gpu_gb_s * gpu_bytes / gb * ms / 1000

    def calls(self, memory_bytes: float, ms: float, n: float = 1.0) -> None:
        """Count `n` calls of a function, each taking `ms`, with its fee."""
        price = self.table.function
        self._cost["requests"] += price.request * n
        if price.billing == PER_CALL:
            self._cost["functions"] += n * self._gb_s(memory_bytes, price.billed_ms(ms), price.gb_s)

    def lifetime(self, memory_bytes: float, ms: float) -> None:
        """Count a replica's life from its start to its end; free where calls are billed."""
        price = self.table.function
        if price.billing != PER_CALL:
            self._cost["functions"] += self._gb_s(memory_bytes, price.billed_ms(ms), price.gb_s)

    def idle(self, memory_bytes: float, ms: float) -> None:
        """Count a replica kept waiting; part of its life where that is billed."""
        price = self.table.function
        if price.billing == PER_CALL:
            self._cost["idle"] += self._gb_s(memory_bytes, ms, price.idle_gb_s)

    def cold_start(self, memory_bytes: float, ms: float, n: float = 1.0) -> None:
        """Count starts, where they are billed apart from calls."""
        price = self.table.function
        if price.cold_start_billed and price.billing == PER_CALL:
            billed = self._gb_s(memory_bytes, price.billed_ms(ms), price.gb_s)
            self._cost["cold_starts"] += n * billed

    def egress(self, n_bytes: float) -> None:
        """Count bytes that leave a function."""
        self._cost["egress"] += self.table.egress_gb * n_bytes / self.table.gb_bytes

    def bill(self) -> Bill:
        """Give what has been counted so far."""
        return Bill(**self._cost)

    def _gb_s(self, memory_bytes: float, ms: float, price: float) -> float:
        return price * memory_bytes / self.table.gb_bytes * ms / 1000
