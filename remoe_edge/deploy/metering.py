"""An engine's meter: what it and its functions have used so far, as a bill and for Prometheus.

It looks on at answers for the main host's time, and asks the engine for the rest when somebody reads.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from remoe_edge.engine.engine import Engine
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.errors import RemoeError
from remoe_edge.placement.metered import FunctionUse, MainUse, Metered, metered
from remoe_edge.placement.price import PriceTable
from remoe_edge.telemetry.families import Family


class Metering:
    """Meter one engine under a price table, which may be given later. Any thread."""

    def __init__(
        self, table: PriceTable | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.table = table
        self._clock = clock
        self._lock = threading.Lock()
        self._engine: Callable[[], Engine | None] = lambda: None
        self._loaded_s = clock()
        self._running = 0  # answers
        self._begun_s: float | None = None  # when the first of them did
        self._busy_ms = 0.0
        self._answers = 0
        self._last: tuple[Mapping[str, Any], int] | None = None

    def watch(self, engine: Engine) -> None:
        """Meter this engine from now on, its loading included."""
        self._loaded_s = self._clock() - engine.load_ms / 1000
        self._engine = weakref.ref(engine)

    # --- what an observer is told ---

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Nothing is used yet."""

    def on_begin(self, n_prompt: int) -> None:
        """An answer begins."""
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._begun_s = self._clock()

    def on_step(self, step: Step) -> None:
        """Steps are counted by the engine."""

    def on_answer(self, answer: AnswerStats) -> None:
        """An answer has ended."""
        with self._lock:
            self._running = max(0, self._running - 1)
            if self._begun_s is not None and not self._running:
                self._busy_ms += 1000 * (self._clock() - self._begun_s)
                self._begun_s = None
            self._answers += 1

    def on_close(self) -> None:
        """The figures stay as they are."""

    # --- what it tells ---

    def read(self) -> Metered | None:
        """Bill what was used so far; None while there is no engine or no price table."""
        engine = self._engine()
        if engine is None or self.table is None:
            return None
        try:
            stats = engine.stats()
        except RemoeError:  # it has been closed
            return None
        with self._lock:
            now = self._clock()
            busy_ms = self._busy_ms
            busy_ms += 0.0 if self._begun_s is None else 1000 * (now - self._begun_s)
            answers = self._answers
        life_ms = 1000 * (now - self._loaded_s)
        cache = stats.cache
        cpu_bytes = sum(n for name, n in stats.buffers.items() if name != "model")
        cpu_bytes += 0 if cache is None else cache.budget_bytes + cache.dense_bytes
        cpu_bytes += stats.buffers.get("model", 0) if cache is None else 0
        gpu_bytes = sum(stats.gpu_buffers.values())
        main = MainUse(cpu_bytes, gpu_bytes, busy_ms, life_ms, stats.load_ms, answers)
        return metered(self.table, main, self._functions(stats, life_ms))

    @staticmethod
    def _functions(stats: Any, life_ms: float) -> dict[str, FunctionUse]:
        remote = stats.remote or {}
        found = {each["name"]: FunctionUse.of(each) for each in remote.get("functions", ())}
        if found or stats.cache is None:
            return found
        # Workers that are there in any case are taken to be as large as the experts they hold.
        return {
            each["address"]: FunctionUse(
                each["experts"] * stats.cache.expert_bytes, life_ms, calls=each["remote_asked"],
                compute_ms=each["remote_compute_us"] / 1000,
                egress_bytes=each["remote_received_bytes"],
            )
            for each in remote.get("peers", ())
        }  # fmt: skip

    def families(self) -> list[Family]:
        """Give everything for Prometheus; nothing while there is nothing to price."""
        found = self.read()
        return [] if found is None else families(found)


def families(found: Metered) -> list[Family]:
    """Turn a bill into families. Of functions each has a label `function`."""

    def counter(name: str, text: str) -> Family:
        return Family(f"remoe_edge_{name}_total", "counter", text)

    table = found.table
    cost = counter("cost", "What was used so far, priced, by part of the bill.")
    gb_s = counter("memory_gb_seconds", "Memory by time, as it is billed: busy, idle and starting.")
    for part, value in found.bill.as_dict().items():
        if part != "total":
            cost.add(value, part=part, currency=table.currency, prices=table.name)
    for of, each in found.gb_s.items():
        for kind, value in (("busy", each.busy), ("idle", each.idle), ("starting", each.starts)):
            if value or kind == "busy":
                gb_s.add(value, of=of, kind=kind)
    calls = counter("function_calls", "Experts of a step that a function was asked for.")
    starts = counter("function_starts", "Replicas that were started for a lease.")
    seconds = counter("function_start_seconds", "Time of those starts.")
    held = counter("function_lease_seconds", "Time that leases were held.")
    computing = counter("function_compute_seconds", "Time that functions report to have computed.")
    egress = counter("function_egress_bytes", "Rows that functions have answered.")
    for name, use in found.functions.items():
        calls.add(use.calls, function=name)
        starts.add(use.starts, function=name)
        seconds.add(use.start_ms / 1000, function=name)
        held.add(use.held_ms / 1000, function=name)
        computing.add(use.compute_ms / 1000, function=name)
        egress.add(use.egress_bytes, function=name)
    return [cost, gb_s, calls, starts, seconds, held, computing, egress]
