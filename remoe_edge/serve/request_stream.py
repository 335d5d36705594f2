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

_MOST_READY = 4
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
        self._answers: list[Cancellable] = []
        self._is_over = False  # for the reader
        self._n_ready = 0  # events that it took without waiting

    # --- in the event loop ---

    def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Give the events until all answers have ended, or one has failed."""
        return self

    async def __anext__(self) -> tuple[int, Event]:
        """Wait for the next event; may be cancelled, and called again, without losing one."""
        self._n_ready = self._n_ready + 1 if self._events else 0
        if self._n_ready >= _MOST_READY:  # a client that has gone is noticed in the loop alone
            self._n_ready = 0
            await asyncio.sleep(0)
        while not self._events and not self._is_over:
            self._arrived.clear()
            if not self._events:  # else it has come meanwhile
                await self._arrived.wait()
        found = None if self._is_over else self._events.popleft()
        self._is_over = found is None or isinstance(found[1], Failed)
        if found is None:
            raise StopAsyncIteration
        return found

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
        """Wake the reader only where it may be asleep: waking it is what a token costs most."""
        self._events.append(found)
        if self._arrived.is_set():
            return
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the event loop has gone, and with it the reader
            self.cancelled = True
