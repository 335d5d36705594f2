"""Who looks on while an engine runs: told of each step, able to fail without harm to the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from remoe_edge.engine.counters import Counts

if TYPE_CHECKING:
    from remoe_edge.engine.stats import AnswerStats


@dataclass
class Step(Counts):
    """Hold what one step cost: a prompt until its first token ("prefill"), or one token ("decode").

    Times of beginning and end on the clock of `time.perf_counter()`, in seconds; slots and
    budget_bytes are the cache's after it, 0 where nothing is streamed; the rest are the counts of
    engine/counters.py.
    """

    phase: str
    n_tokens: int
    start_s: float
    end_s: float
    slots: int = 0
    budget_bytes: int = 0

    @property
    def ms(self) -> float:
        """Give the step's time."""
        return (self.end_s - self.start_s) * 1000


class Observer(Protocol):
    """Be told what an engine does, in its thread, between steps: what takes long slows the caller."""

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Take what holds for the engine's whole life: model, settings, budget."""

    def on_begin(self, n_prompt: int) -> None:
        """An answer begins."""

    def on_step(self, step: Step) -> None:
        """A prompt or a token has been computed."""

    def on_answer(self, answer: AnswerStats) -> None:
        """An answer has ended, however it did; `answer.energy` may be filled in."""

    def on_close(self) -> None:
        """The engine is gone."""


class Observers:
    """Pass events on to everyone who looks on; who raises is dropped and named once.

    cache: gives the cache's slots and bytes, which may change while an engine runs.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        cache: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._note, self._cache = note, cache
        self._observers: list[Observer] = []

    def __bool__(self) -> bool:
        return bool(self._observers)

    def add(self, observer: Observer, facts: Mapping[str, Any]) -> None:
        """Let `observer` see what comes."""
        self._observers.append(observer)
        self._tell([observer], lambda each: each.on_load(facts))

    def remove(self, observer: Observer) -> None:
        """Let `observer` see no more; it will not be told that the engine closes."""
        if observer in self._observers:
            self._observers.remove(observer)

    def begin(self, n_prompt: int) -> None:
        """Tell that an answer begins."""
        self._tell(self._observers, lambda each: each.on_begin(n_prompt))

    def step(self, step: Step) -> None:
        """Tell of a step, and of the cache after it."""
        step.slots, step.budget_bytes = self._cache()
        self._tell(self._observers, lambda each: each.on_step(step))

    def answer(self, answer: AnswerStats) -> None:
        """Tell that an answer has ended."""
        self._tell(self._observers, lambda each: each.on_answer(answer))

    def close(self) -> None:
        """Tell that the engine is gone."""
        self._tell(self._observers, lambda each: each.on_close())
        self._observers.clear()

    def _tell(self, observers: Sequence[Observer], event: Callable[[Observer], None]) -> None:
        for observer in list(observers):
            try:
                event(observer)
            except Exception as error:
                self.remove(observer)
                with contextlib.suppress(Exception):
                    observer.on_close()
                self._note(f"{type(observer).__name__.lower()} ended: {error}")
