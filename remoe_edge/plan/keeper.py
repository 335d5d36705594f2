"""Keep a plan while it runs: from measured tokens to the slots that meet a time per token.

A plan without a trace begins with another model's figures. What a token takes and misses here says
how far they are off. Misses are taken to follow their shape, with an exponent of this model's own:

    misses(x) = K·L · f(x)^α      x the share of experts in the cache, f the published figures

A token takes a + b·misses; a, computing, is the plan's, and b follows from what was measured. The slots
at which that meets the target are asked for, a window is waited for, and so on: growing at most
twofold (or by a fifth of the experts), shrinking at most by a quarter at a time. Decisions alone:
time is in what is handed in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from remoe_edge.engine.observers import Step
from remoe_edge.plan.misses import SHAPE

_AIM = 0.93  # of the target: a little below
_HIGH, _LOW = 1.06, 0.82  # a window within these shares of the target changes nothing
PROMISE = 1.2  # what counts as kept
_WINDOW, _LONGEST = (
    12,
    32,
)  # tokens judged together; fewer than the longest only if the cache is full
_SETTLE = 2  # after a change, uncounted
_FULL = 0.3  # evictions per miss from which on a cache counts as full
_MOST_GROWTH, _MOST_SHRINKING = 2.0, 0.75
_ALWAYS = 0.2  # of all experts that a step of growth may be, from however few
JUDGED_AFTER = 64  # tokens
_RECENT, _RECENT_LONGEST = 16, 32  # tokens after those by which the promise is judged, as they come

_X = np.asarray([x for x, _ in SHAPE])
_LOG_Y = np.asarray([math.log(y) for _, y in SHAPE])


class PlanKeeper:
    """Follow one engine's tokens; say how many slots it should have.

    target_ms: the promise. resident_ms: a token that misses nothing. choices: experts a token uses over
    all layers. total: all experts. slots: how many it begins with; floor, most: what there may be. An
    observer of the engine: `on_step` comes from its thread; `wanted` may be asked from another.
    """

    def __init__(
        self, target_ms: float, resident_ms: float, choices: int, total: int, slots: int, floor: int,
    ) -> None:  # fmt: skip
        self.target_ms, self.resident_ms = target_ms, resident_ms
        self._choices, self._total, self._floor = choices, total, floor
        self._wanted = self._slots = slots
        self._window: list[tuple[float, int, int]] = []  # ms, misses, evictions
        self._skip = _SETTLE
        self._seen = 0
        # What a promise is judged by: windows begin anew whenever the cache changes, and it must not
        # wait for one of them to end.
        self._recent: deque[float] = deque(maxlen=_RECENT_LONGEST)
        self._room = True  # memory for more slots, as far as is known
        self._refused = (
            0  # windows in which more slots were wanted, and no memory was there for them
        )
        self._said: set[str] = set()
        self._note: Callable[[str], None] = lambda line: None

    # --- what the cache does ---

    def wanted(self, n_slots: int, room: bool) -> int:
        """Take how many slots there are and whether memory has room for more; say how many are wanted.

        A cache grows in steps and waits for calm: that there are fewer than wanted says nothing yet.
        """
        self._room = room
        if n_slots != self._slots:
            grown = abs(n_slots - self._slots) > max(1, self._slots // 100)
            self._slots = n_slots
            if grown:
                self._begin()
        return self._wanted

    @property
    def measured_ms(self) -> float | None:
        """Give what the last tokens took, once there are enough of them."""
        enough = len(self._recent) >= _RECENT
        return sum(self._recent) / len(self._recent) if enough else None

    @property
    def state(self) -> str:
        """Say "learning", "kept", "not yet" (the cache grows, and fills) or "out of reach"."""
        measured_ms = self.measured_ms
        if self._seen < JUDGED_AFTER + _RECENT or measured_ms is None:
            return "learning"
        if measured_ms <= PROMISE * self.target_ms:
            return "kept"
        hopeless = self._refused >= 2 or self.resident_ms > PROMISE * self.target_ms
        return "out of reach" if hopeless else "not yet"

    def verdict(self) -> str | None:
        """Say in a line, once, that the promise is not kept and why; None where it is, or not known."""
        state, measured_ms = self.state, self.measured_ms
        if state in ("learning", "kept") or state in self._said or measured_ms is None:
            return None
        self._said.add(state)
        if state == "not yet":
            share = max(self._slots, self._wanted) / self._total
            return (
                f"{_ms(self.target_ms)} ms per token are not kept yet: a token takes about "
                f"{_ms(measured_ms)} ms while the cache grows to {share:.0%} of the experts and "
                "fills"
            )
        share = self._slots / self._total
        return (
            f"{_ms(self.target_ms)} ms per token cannot be kept: with all the memory that is free "
            f"({share:.0%} of the experts) a token takes about {_ms(measured_ms)} ms, of which "
            f"{_ms(min(self.resident_ms, measured_ms))} are computing"
        )

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        measured_ms = self.measured_ms
        measured = None if measured_ms is None else round(measured_ms, 3)
        return {
            "target_ms": self.target_ms, "measured_ms": measured, "state": self.state,
            "wanted_slots": self._wanted, "tokens": self._seen,
        }  # fmt: skip

    def says_to(self, note: Callable[[str], None]) -> None:
        """Take what notes, once, that the promise is not kept and why."""
        self._note = note

    # --- what it is told ---

    def on_step(self, step: Step) -> None:
        """Take a token's time and misses; a prompt's say nothing."""
        if step.phase != "decode" or step.n_tokens != 1:
            return
        self._seen += 1
        if self._seen == JUDGED_AFTER + 1:
            self._recent.clear()
        self._recent.append(step.ms)
        self._decide(step)
        if (line := self.verdict()) is not None:
            self._note(line)

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def on_begin(self, n_prompt: int) -> None:
        """Forget what was half seen: a prompt leaves other experts in the cache.

        A promise that was kept meanwhile and is not any more is worth a line again.
        """
        if self.state == "kept":
            self._said.clear()
        self._recent.clear()
        self._begin()

    def on_answer(self, answer: Any) -> None:
        """Nothing to do."""

    def on_close(self) -> None:
        """Nothing to do."""

    # --- deciding ---

    def _begin(self) -> None:
        self._window.clear()
        self._skip = _SETTLE

    def _decide(self, step: Step) -> None:
        if self._skip > 0:
            self._skip -= 1
            return
        self._window.append((step.ms, step.misses, step.evictions))
        n = len(self._window)
        misses = sum(each[1] for each in self._window)
        full = sum(each[2] for each in self._window) >= _FULL * misses
        if n >= _LONGEST or (n >= _WINDOW and full):
            ms = sum(each[0] for each in self._window) / n
            self._judge(ms, misses / n, full)

    def _judge(self, ms: float, misses: float, full: bool) -> None:
        ratio = ms / self.target_ms
        everything = self._slots >= self._total and (full or misses < 1)
        refused = everything or (self._wanted > self._slots and not self._room)
        self._refused = self._refused + 1 if refused and ratio > PROMISE else 0
        # A cache that still has room for what it misses wants time, and no slots.
        if _LOW <= ratio <= _HIGH or (ratio > 1 and not full):
            self._window.clear()
            return
        slots = self._meeting(ms, misses)
        if ratio > 1:
            least = self._slots + max(1, self._slots // 20)
            most = max(self._slots * _MOST_GROWTH, self._slots + _ALWAYS * self._total)
            slots = min(max(slots, least), math.ceil(most))
        else:
            slots = max(min(slots, self._slots - 1), math.ceil(self._slots * _MOST_SHRINKING))
        self._wanted = max(self._floor, min(self._total, slots))
        self._begin()

    def _meeting(self, ms: float, misses: float) -> int:
        """Find the slots that meet the target, by what this window says of the model."""
        computing = min(self.resident_ms, 0.95 * ms)
        each_ms = (ms - computing) / max(misses, 0.05)
        allowed = (_AIM * self.target_ms - computing) / each_ms
        if allowed <= 0:
            return self._total
        x = self._slots / self._total
        here = min(-1e-3, math.log(max(misses, 0.05) / self._choices))
        exponent = min(5.0, max(0.2, here / min(-1e-3, _log_shape(x))))
        log_y = min(0.0, math.log(min(1.0, allowed / self._choices))) / exponent
        return math.ceil(float(np.interp(-log_y, -_LOG_Y, _X)) * self._total)


def _log_shape(x: float) -> float:
    return float(np.interp(x, _X, _LOG_Y))


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
