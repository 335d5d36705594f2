"""The clock: what happens next, in the order of time, and of asking where times are equal."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator

Process = Generator[float, None, None]  # yields the time at which it goes on, in milliseconds


class Clock:
    """Run processes; `now` is in milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Have something done at a time that has not passed."""
        if time < self.now:
            raise ValueError(f"{time} ms have passed, it is {self.now}")
        self._asked += 1
        heapq.heappush(self._queue, (time, self._asked, act))

    def start(self, process: Process) -> None:
        """Run a process from now, step by step."""

        def step() -> None:
            try:
                self.at(next(process), step)
            except StopIteration:
                return

        self.at(self.now, step)

    def run(self) -> None:
        """Go on until nothing is left to happen."""
        while self._queue:
            self.now, _, act = heapq.heappop(self._queue)
            act()
