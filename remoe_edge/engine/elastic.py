"""Keep a loaded model's cache as large as its memory lets it be: a look every few milliseconds.

A light thread looks, and asks the core for slots; the core gives them back at once, or before the next
layer of a step that runs. So a neighbour gets its memory while a prompt is computed, while a token is,
and while nothing is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from remoe_edge.engine.elastic_budget import (
    CGROUP_RESERVE_BYTES,
    MACHINE_RESERVE_BYTES,
    ElasticBudget,
    Sight,
)
from remoe_edge.machine import memory
from remoe_edge.machine.memory_sensor import MemorySensor

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel

# Between two looks: while memory moves, while it is short, while there is plenty.
MOVING_S, SHORT_S, PLENTY_S = 0.01, 0.02, 0.05
_PLENTY = 4  # reserves


class Elastic:
    """Look after one model's cache until `close`.

    untouched_bytes: buffers of llama.cpp's that were reserved and not written to when this begins.
    ceiling: told how many slots there are and whether memory has room for more, and asked how many
    there may be at most, such as by a plan that needs no more.
    """

    def __init__(
        self,
        native: StreamedModel,
        untouched_bytes: int,
        *,
        ceiling: Callable[[int, bool], int] | None = None,
        sensor: MemorySensor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._native = native
        self._untouched_bytes = untouched_bytes
        self._began_bytes = memory.anonymous_bytes() - self._present_bytes()
        self._ceiling = ceiling
        self._sensor = sensor or MemorySensor()
        self._clock = clock
        least = max(1, native.n_experts_used)
        self._budget = ElasticBudget(native.slot_bytes, least, native.most_slots)
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="remoe-edge-elastic", daemon=True)
        self.grown = self.shrunk = 0  # slots, over all
        self._n_slots = native.n_slots

    def start(self) -> Elastic:
        """Begin to look."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End it; the cache stays as it is."""
        self._stop.set()
        if os.getpid() == self._pid and self._thread.is_alive():
            self._thread.join()
        self._sensor.close()

    def between_steps(self) -> None:
        """Carry out what a step left undone; called by the thread that computes."""
        self._native.finish_resize()

    def look(self) -> float:
        """Look once and ask for what is right; say in how many seconds to look again."""
        native = self._native
        now_s = self._clock()
        seen = self._sensor.read(now_s)
        if seen is None:
            return PLENTY_S
        reserve = CGROUP_RESERVE_BYTES if seen.cgroup else MACHINE_RESERVE_BYTES
        free = seen.free_bytes - native.untouched_bytes - self._still_untouched()
        n_slots = native.n_slots
        self._count(n_slots)
        sight = Sight(now_s, free, reserve, seen.stalled, n_slots)
        wanted = self._budget.decide(sight)
        if self._ceiling is not None:
            wanted = max(1, min(wanted, self._ceiling(n_slots, self._budget.has_room(sight))))
        if wanted != n_slots:
            self._count(native.resize(wanted))
        if wanted != n_slots or not self._budget.calm(now_s):
            return MOVING_S
        return SHORT_S if free < _PLENTY * reserve else PLENTY_S

    def _count(self, n_slots: int) -> None:
        self.grown += max(0, n_slots - self._n_slots)
        self.shrunk += max(0, self._n_slots - n_slots)
        self._n_slots = n_slots

    def _present_bytes(self) -> int:
        return self._native.budget_bytes - self._native.untouched_bytes

    def _still_untouched(self) -> int:
        """Reckon what llama.cpp's buffers will still take: what the process has not grown by since."""
        if self._untouched_bytes > 0:
            grown = memory.anonymous_bytes() - self._present_bytes() - self._began_bytes
            if grown > 0:  # once touched, they stay
                self._began_bytes += grown
                self._untouched_bytes = max(0, self._untouched_bytes - grown)
        return self._untouched_bytes

    def _run(self) -> None:
        pause_s = MOVING_S
        while not self._stop.wait(pause_s):
            pause_s = self.look()
