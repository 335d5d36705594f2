"""Who looks on while an engine runs: told of each step, able to fail without harm to the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from remoe_edge.engine.stats import Answer


@dataclass(frozen=True)
class Step:
    """Hold what one step cost: a prompt until its first token ("prefill"), or one token ("decode").

    Times on the clock of `time.perf_counter()`; `stall_ms` is the part spent waiting for experts,
    `ffn_ms` the part inside expert FFNs, stalls included.
    """

    phase: str
    n_tokens: int
    start_s: float
    end_s: float
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    stall_ms: float = 0.0
    ffn_ms: float = 0.0

    @property
    def ms(self) -> float:
        """Give the step's time."""
        return (self.end_s - self.start_s) * 1000


class Watcher(Protocol):
    """Be told what an engine does, in its thread, between steps: what takes long slows the caller."""

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Take what holds for the engine's whole life: model, settings, budget."""

    def on_begin(self, n_prompt: int) -> None:
        """An answer begins."""

    def on_step(self, step: Step) -> None:
        """A prompt or a token has been computed."""

    def on_answer(self, answer: Answer) -> None:
        """An answer has ended, however it did; `answer.energy` may be filled in."""

    def on_close(self) -> None:
        """The engine is gone."""


class Watchers:
    """Pass events on to everyone who watches; who raises is dropped and named once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._watchers: list[Watcher] = []

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def add(self, watcher: Watcher, facts: Mapping[str, Any]) -> None:
        """Let `watcher` see what comes."""
        self._watchers.append(watcher)
        self._tell([watcher], lambda each: each.on_load(facts))

    def remove(self, watcher: Watcher) -> None:
        """Let `watcher` see no more; it will not be told that the engine closes."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def begin(self, n_prompt: int) -> None:
        """Tell that an answer begins."""
        self._tell(self._watchers, lambda each: each.on_begin(n_prompt))

    def step(self, step: Step) -> None:
        """Tell of a step."""
        self._tell(self._watchers, lambda each: each.on_step(step))

    def answer(self, answer: Answer) -> None:
        """Tell that an answer has ended."""
        self._tell(self._watchers, lambda each: each.on_answer(answer))

    def close(self) -> None:
        """Tell that the engine is gone."""
        self._tell(self._watchers, lambda each: each.on_close())
        self._watchers.clear()

    def _tell(self, watchers: Sequence[Watcher], event: Callable[[Watcher], None]) -> None:
        for watcher in list(watchers):
            try:
                event(watcher)
            except Exception as error:
                self.remove(watcher)
                with contextlib.suppress(Exception):
                    watcher.on_close()
                self._note(f"{type(watcher).__name__.lower()} ended: {error}")


def since(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """Turn two of the core's counts into the fields of a `Step`; none where nothing is streamed."""
    if not after:
        return {}
    spent = {name: after[name] - before[name] for name in ("hits", "misses", "bytes_read")}
    return {
        **spent,
        "stall_ms": (after["stall_ns"] - before["stall_ns"]) / 1e6,
        "ffn_ms": (after["ffn_ns"] - before["ffn_ns"]) / 1e6,
    }
