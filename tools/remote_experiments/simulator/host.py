"""A main host answering one request: layer by layer, local experts beside functions or storage."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from remoe_edge.placement.bill import Meter
from remoe_edge.placement.request import Request
from remoe_edge.placement.schedule import longest_first
from remoe_edge.placement.times import rounds
from remote_experiments.simulator.clock import Process
from remote_experiments.simulator.memory import Memory
from remote_experiments.simulator.pool import Pool
from remote_experiments.simulator.world import STORAGE, Arrival, World


@dataclass
class Counts:
    """Count over all hosts."""

    missing: int = 0
    hedged: int = 0


@dataclass
class Functions:
    """Hold the pools, and which of them has each expert, [layer, expert]; -1 for none."""

    pools: list[Pool]
    where: list[list[int]]
    row_ms: tuple[float, ...]
    replicas: list[int]


@dataclass
class Host:
    """Answer one request at a time; its storage is its own."""

    world: World
    request: Request
    functions: Functions
    memory: Memory
    meter: Meter
    rng: np.random.Generator
    counts: Counts
    storage_free_ms: float = 0.0
    step: int = 0
    ttft_at_ms: float = field(default=0.0, init=False)

    def answer(self, asked: Arrival, start_ms: float) -> Process:
        """Go through prompt and answer; yields before every step that leaves the host."""
        speed, shape = self.request.speed, self.request.shape
        n_prompt = asked.n_prompt
        dense = speed.prefill_base_ms + n_prompt * speed.prefill_dense_each_ms
        now = start_ms
        routed = np.asarray(asked.routed).tolist()
        answer = (slice(i, i + 1) for i in range(n_prompt, len(routed[0])))
        for token in [slice(0, n_prompt), *answer]:
            n_tokens = token.stop - token.start
            row_ms = speed.prefill_row_ms if token.start == 0 else speed.decode_row_ms
            for layer in range(shape.n_layers):
                now += dense / shape.n_layers
                rows = Counter(chain.from_iterable(routed[layer][token]))
                lacking = self.memory.missing(layer, sorted(rows), self.step, n_tokens)
                local_ms = (n_tokens * shape.top_k - sum(rows[i] for i in lacking)) * row_ms
                if not lacking:
                    now += local_ms
                    continue
                yield now
                self.counts.missing += len(lacking)
                now = self._layer(layer, now, local_ms, {i: rows[i] for i in lacking}, row_ms)
            self.step += 1
            if token.start == 0:
                self.ttft_at_ms = now
                dense = speed.decode_dense_ms
        yield now

    def _layer(
        self, layer: int, now: float, local_ms: float, rows: dict[int, int], row_ms: float
    ) -> float:
        """Give the end of a layer's experts that begin now, `rows` of them elsewhere."""
        if self.world.missing == STORAGE:
            read = self._read(now, len(rows))
            # Rows are computed as their experts come: the last one after the last read.
            busy = now + local_ms + sum(rows.values()) * row_ms
            return max(busy, read + list(rows.values())[-1] * row_ms)
        end = now + local_ms
        jobs: dict[int, list[float]] = {}
        for expert, n in rows.items():
            jobs.setdefault(self.functions.where[layer][expert], []).append(float(n))
        if self.world.sharing is not None:
            return self._beside(now, local_ms, {i: sum(mine) for i, mine in jobs.items()})
        for i, mine in sorted(jobs.items()):
            end = max(end, self._call(i, now, mine, row_ms))
        return end

    def _beside(self, now: float, local_ms: float, rows: dict[int, float]) -> float:
        """Give the end of a layer whose functions compute on the host's own processors."""
        assert self.world.sharing is not None
        link, row_bytes = self.request.link, self.request.shape.row_bytes
        trip = link.round_trip_ms if self.world.round_trip_ms is None else self.world.round_trip_ms
        jobs, back = [(now, local_ms)], [0.0]
        for i, n in sorted(rows.items()):
            way = trip / 2 + link.transfer_ms(n * row_bytes / 2)
            jobs.append((now + way, n * self.functions.row_ms[i]))
            back.append(way)
        ends = self.world.sharing.ends(jobs)
        return max(end + way for end, way in zip(ends, back, strict=True))

    def _call(self, i: int, now: float, jobs: list[float], local_row_ms: float) -> float:
        """Send one function's rows to its replicas; give the time when all is back, or read instead."""
        functions, link, shape = self.functions, self.request.link, self.request.shape
        working = min(functions.replicas[i], len(jobs))
        loads = [0.0] * working
        for job, replica in zip(jobs, longest_first(jobs, working).replica, strict=True):
            loads[replica] += job
        trip = link.round_trip_ms if self.world.round_trip_ms is None else self.world.round_trip_ms
        payload = self.world.placement.table.function.payload_bytes
        total = sum(jobs)
        sent = link.transfer_ms(total * shape.row_bytes / 2)
        end = now
        for load in loads:
            trips = rounds(load * shape.row_bytes / 2, 1, payload)
            at = now
            for _ in range(trips):
                delay = trip
                if self.world.jitter:
                    delay *= math.exp(self.world.jitter * self.rng.standard_normal())
                ready = functions.pools[i].call(
                    at + delay / 2 + sent / trips, load * functions.row_ms[i] / trips
                )
                at = ready + delay / 2 + sent / trips
            end = max(end, at)
        self.meter.egress(total * shape.row_bytes / 2)
        if self.world.hedge_ms is None:
            return end
        planned = self.world.placement.functions[i].row_ms
        due = now + 2 * sent + max(loads) * planned + self.world.hedge_ms
        if end <= max(due, self.storage_free_ms):
            return end  # in time, or before storage could have begun
        read = self._read(due, len(jobs)) + total * local_row_ms
        if read < end:
            self.counts.hedged += len(jobs)
        return min(read, end)

    def _read(self, now: float, n_experts: int) -> float:
        """Read experts after what storage is still busy with."""
        seconds = n_experts * self.request.shape.expert_bytes / self.world.storage_bytes_per_s
        self.storage_free_ms = max(now, self.storage_free_ms) + 1000 * seconds
        return self.storage_free_ms
