"""One request and its events on their way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from remoe_edge.engine.answer import Usage
from remoe_edge.serve.conversations import Ask
from remoe_edge.serve.events import Event, Failed, Finish, Reasoning

# Tokens that follow each other so fast that several come in this time are handed over together. Nobody
# reads faster, and waking the reader for each would take more of the cores than all else that is done.
GATHER_S, GATHERED = 0.05, 4
AGAIN_S = 0.05  # a step that was just beginning may have missed the first interrupt


class Cancellable(Protocol):
    """An answer that is being made."""

    def cancel(self) -> None:
        """Let no token follow."""

    @property
    def usage(self) -> Usage:
        """Count its tokens."""
        ...


class RequestStream:
    """Hold a request's events. Implements `Stream`.

    withdraw: takes the request out of a queue; says whether it is being answered instead.
    """

    def __init__(self, asks: Sequence[Ask], withdraw: Callable[[RequestStream], bool]) -> None:
        self.asks = list(asks)
        self.cancelled = False
        self.came_s = time.monotonic()
        self.first_s: float | None = None  # from when it came to its first event
        self._withdraw = withdraw
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Event] | None] = deque()
        self._arrived = asyncio.Event()
        self._is_asleep = True  # the reader, unless it will look by itself
        self._last_s = self.came_s  # when an event came
        self._gap_s = GATHER_S  # between two events, lately
        self._answers: list[Cancellable] = []
        self._is_over = False  # for the reader

    # --- in the event loop ---

    def __aiter__(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Give all events that are there, until all answers have ended, or one has failed."""
        return self

    async def __anext__(self) -> list[tuple[int, Event]]:
        """Wait for the next events; may be cancelled, and called again, without losing one."""
        found: list[tuple[int, Event]] = []
        while not found and not self._is_over:
            await self._arrived.wait()
            self._arrived.clear()
            while self._events and not self._is_over:
                event = self._events.popleft()
                self._is_over = _is_last(event)
                if event is not None:
                    found.append(event)
        if not found:
            raise StopAsyncIteration
        if not self._is_over and self._gap_s < GATHER_S / GATHERED:
            self._is_asleep = False
            self._loop.call_later(GATHER_S, self._look)
        elif not self._is_over:
            self._look()
        return found

    def _look(self) -> None:
        """Wake the reader for what has come since, or let the next event do it."""
        self._is_asleep = not self._events
        if self._events:  # asked again: it may have come while nobody would have woken the reader
            self._is_asleep = False
            self._arrived.set()

    def cancel(self) -> None:
        """Let the engine go on to others. Idempotent."""
        self.stop()
        if self._withdraw(self) and not self._loop.is_closed():
            self._loop.call_later(AGAIN_S, self.cancel)

    # --- in whatever thread ---

    def stop(self) -> None:
        """Let no token follow."""
        self.cancelled = True
        for answer in list(self._answers):
            answer.cancel()

    def progress(self) -> tuple[int, int]:
        """Count the tokens of the prompt, and those made from it so far, by the last answer begun."""
        if not self._answers:
            return len(self.asks[0].tokens), 0
        usage = self._answers[-1].usage
        return usage.prompt_tokens, usage.completion_tokens

    # --- in the engine's thread ---

    def begin(self, answer: Cancellable) -> None:
        """Take an answer that is being made now."""
        self._answers.append(answer)
        if self.cancelled:
            answer.cancel()

    def leave(self) -> None:
        """Let go of the answers: they have ended, or are no longer wanted. They hold this."""
        self._answers = []

    def on_reasoning(self, index: int) -> Callable[[str], None]:
        """Give what takes the reasoning of one answer."""
        return lambda text: self.emit(index, Reasoning(text))

    def emit(self, index: int, event: Event) -> None:
        """Hand an event to the reader."""
        if self.first_s is None and not isinstance(event, Finish | Failed):
            self.first_s = time.monotonic() - self.came_s
        self._hand((index, event))

    def end(self) -> None:
        """Tell the reader that all has been said."""
        self._hand(None)

    def _hand(self, found: tuple[int, Event] | None) -> None:
        """Wake the reader where it is asleep, and where nothing follows that it could wait for."""
        self._events.append(found)
        now_s = time.monotonic()
        self._gap_s += 0.2 * (min(now_s - self._last_s, GATHER_S) - self._gap_s)
        self._last_s = now_s
        if not (self._is_asleep or _is_last(found) or self._loop.is_closed()):
            return
        self._is_asleep = False
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the event loop has gone, and with it the reader
            self.cancelled = True


def _is_last(found: tuple[int, Event] | None) -> bool:
    return found is None or isinstance(found[1], Failed)
