"""Run requests through a world: hosts that start and stop, queues before them, and the bill."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from remoe_edge.placement.bill import Meter
from remoe_edge.placement.price import PER_CALL
from remote_experiments.simulator.clock import Clock, Process
from remote_experiments.simulator.host import Counts, Functions, Host
from remote_experiments.simulator.pool import Pool
from remote_experiments.simulator.world import Arrival, Outcome, Served, World


@dataclass
class _Slot:
    """A place for a main host, running or not."""

    host: Host | None = None
    busy: bool = False
    started_ms: float = 0.0
    idle_from_ms: float = 0.0


class Simulation:
    """Hold what runs while the clock goes."""

    def __init__(self, world: World) -> None:
        self.world, self.clock = world, Clock()
        self.meter = Meter(world.placement.table)
        self.rng = np.random.default_rng(world.seed)
        self.counts = Counts()
        self.functions = self._functions()
        self.slots = [_Slot() for _ in range(world.n_hosts)]
        self.waiting: deque[Arrival] = deque()
        self.served: list[Served] = []
        self.main_starts = 0
        placement = world.placement
        self.main_bytes = placement.main_bytes if world.main_bytes is None else world.main_bytes
        if world.always_on:
            for slot in self.slots:
                slot.host = self._host()

    def _functions(self) -> Functions:
        placement, starts = self.world.placement, self.world.starts
        where = np.full((placement.request.shape.n_layers, placement.request.shape.n_experts), -1)
        pools = []
        for i, each in enumerate(placement.functions):
            where[each.group.layer, list(each.group.experts)] = i
            pools.append(
                Pool(
                    each.memory_bytes, each.replicas, self._function_start,
                    math.inf if self.world.always_on else starts.keep_ms, self.meter,
                )
            )  # fmt: skip
            if self.world.always_on:
                pools[-1].warm(0.0)
        row_ms = self.world.row_ms or tuple(each.row_ms for each in placement.functions)
        return Functions(
            pools, where.tolist(), row_ms, [each.replicas for each in placement.functions]
        )

    def _function_start(self) -> float:
        starts = self.world.starts
        return starts.function_ms * math.exp(starts.sigma * self.rng.standard_normal())

    def _host(self) -> Host:
        return Host(
            self.world, self.world.placement.request, self.functions, self.world.memory(),
            self.meter, self.rng, self.counts,
        )  # fmt: skip

    def arrive(self, asked: Arrival) -> None:
        """Queue a request, and serve it if a host is there or can be started."""
        self.waiting.append(asked)
        self._serve()

    def _serve(self) -> None:
        while self.waiting:
            self._stop_idle()
            free = [slot for slot in self.slots if not slot.busy]
            if not free:
                return
            slot = max(free, key=lambda each: (each.host is not None, each.idle_from_ms))
            slot.busy = True
            self.clock.start(self._run(slot, self.waiting.popleft()))

    def _run(self, slot: _Slot, asked: Arrival) -> Process:
        begin, starts = self.clock.now, self.world.starts
        leased = self.functions.pools if self.world.lease and not self.world.always_on else []
        for pool in leased:
            pool.hold(begin)
        if slot.host is None:
            slot.host, slot.started_ms = self._host(), begin
            self.main_starts += 1
            cold = starts.main_boot_ms + 1000 * self.main_bytes / starts.load_bytes_per_s
            if self.world.placement.table.function.cold_start_billed:
                self._meter_main(cold, PER_CALL)
            yield begin + cold
        start = self.clock.now
        yield from slot.host.answer(asked, start)
        end = self.clock.now
        for pool in leased:
            pool.release(end)
        self._meter_main(end - start, PER_CALL)
        n_answer = asked.routed.shape[1] - asked.n_prompt
        first = slot.host.ttft_at_ms
        tpot = (end - first) / n_answer if n_answer else 0.0
        self.served.append(Served(asked.at_ms, start - asked.at_ms, first - asked.at_ms, tpot, end))
        slot.busy, slot.idle_from_ms = False, end
        self._serve()

    def _meter_main(self, ms: float, billing: str) -> None:
        if self.world.placement.table.function.billing == billing:
            gpu = self.world.placement.request.shape.gpu_bytes
            self.meter.main(self.main_bytes - gpu, gpu, ms)

    def _stop_idle(self, whole: bool = False) -> None:
        """Stop hosts that have had nothing to do for long; where lives are billed, bill them."""
        keep = self.world.starts.keep_ms
        for slot in self.slots:
            idle = slot.host is not None and not slot.busy
            over = whole or self.clock.now - slot.idle_from_ms > keep
            if idle and over and (whole or not self.world.always_on):
                stopped = self.clock.now if self.world.always_on else slot.idle_from_ms + keep
                if self.world.placement.table.function.billing != PER_CALL:
                    gpu = self.world.placement.request.shape.gpu_bytes
                    self.meter.main(self.main_bytes - gpu, gpu, stopped - slot.started_ms)
                slot.host = None

    def close(self) -> Outcome:
        """End all lives, and give what happened."""
        self._stop_idle(whole=True)
        for pool in self.functions.pools:
            if self.world.always_on:
                self.meter.lifetime(pool.memory_bytes * pool.most, self.clock.now)
            else:
                pool.close(self.clock.now)
        pools = self.functions.pools
        return Outcome(
            served=tuple(self.served),
            bill=self.meter.bill(),
            calls=sum(pool.calls for pool in pools),
            function_starts=sum(pool.cold_starts for pool in pools),
            main_starts=self.main_starts,
            function_waits_ms=sum(pool.waited_ms for pool in pools),
            missing=self.counts.missing,
            hedged=self.counts.hedged,
        )


def simulate(world: World, requests: Sequence[Arrival]) -> Outcome:
    """Run all requests to their ends. The same world and requests give the same outcome."""
    simulation = Simulation(world)
    for asked in requests:
        simulation.clock.at(asked.at_ms, lambda asked=asked: simulation.arrive(asked))  # type: ignore[misc]
    simulation.clock.run()
    return simulation.close()
