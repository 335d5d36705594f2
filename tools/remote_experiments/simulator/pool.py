"""A pool of replicas: calls queue in the order they are sent, replicas start cold and stop when idle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from remoe_edge.placement.bill import Meter


@dataclass
class _Replica:
    started_ms: float
    free_ms: float


@dataclass
class Pool:
    """Serve calls of one function with up to `most` replicas.

    `cold_ms()` gives the time of a start. A replica that has had nothing to do for `keep_ms` stops.
    What runs is metered: calls as they end, lives when they end (`close` ends those still running).
    """

    memory_bytes: float
    most: int
    cold_ms: Callable[[], float]
    keep_ms: float
    meter: Meter
    cold_starts: int = 0
    calls: int = 0
    waited_ms: float = 0.0
    leases: int = 0
    _replicas: list[_Replica] = field(default_factory=list)

    def warm(self, now_ms: float) -> None:
        """Have all replicas running, as a deployment does that never scales to zero."""
        self._replicas = [_Replica(now_ms, now_ms) for _ in range(self.most)]

    def hold(self, now_ms: float) -> None:
        """Begin a lease: start all replicas side by side, and let none stop while it lasts."""
        self._stop_idle(now_ms)
        self.leases += 1
        while len(self._replicas) < self.most:
            self._start(now_ms)

    def release(self, now_ms: float) -> None:
        """End a lease; after the last one, replicas that stay idle stop."""
        self.leases -= 1
        if self.leases == 0:
            for each in self._replicas:
                self.meter.idle(self.memory_bytes, max(0.0, now_ms - each.free_ms))
                each.free_ms = max(each.free_ms, now_ms)

    def _start(self, now_ms: float) -> None:
        cold = self.cold_ms()
        self.cold_starts += 1
        self.meter.cold_start(self.memory_bytes, cold)
        self._replicas.append(_Replica(now_ms, now_ms + cold))

    def call(self, sent_ms: float, service_ms: float) -> float:
        """Send a call and give the time at which its answer is ready."""
        self._stop_idle(sent_ms)
        idle = [each for each in self._replicas if each.free_ms <= sent_ms]
        if idle:
            # The one used last: the others may stop.
            chosen = max(idle, key=lambda each: each.free_ms)
        else:
            if len(self._replicas) < self.most:
                self._start(sent_ms)
            chosen = min(self._replicas, key=lambda each: each.free_ms)
        begin = max(sent_ms, chosen.free_ms)
        self.meter.idle(self.memory_bytes, max(0.0, sent_ms - chosen.free_ms))
        self.calls += 1
        self.waited_ms += begin - sent_ms
        self.meter.calls(self.memory_bytes, service_ms)
        chosen.free_ms = begin + service_ms
        return chosen.free_ms

    def close(self, now_ms: float) -> None:
        """End the lives that are still running, as if nothing came any more."""
        self._stop_idle(max(now_ms, now_ms + self.keep_ms) + 1)
        self._replicas = []

    def _stop_idle(self, now_ms: float) -> None:
        kept = []
        for each in self._replicas:
            if self.leases or now_ms - each.free_ms <= self.keep_ms:
                kept.append(each)
                continue
            self.meter.idle(self.memory_bytes, self.keep_ms)
            self.meter.lifetime(self.memory_bytes, each.free_ms + self.keep_ms - each.started_ms)
        self._replicas = kept
