"""Answer requests one after another, in the order in which they came, in a thread of the engine's own.

A scheduler that decodes several sequences together replaces this file; HTTP sees `Conversations` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from remoe_edge.errors import RemoeError
from remoe_edge.serve.conversations import Ask, Load, NotReady, QueueFull, Slot
from remoe_edge.serve.events import Event, Failed, Finish, Reasoning
from remoe_edge.serve.figures import Figures
from remoe_edge.serve.reading import answer_events

if TYPE_CHECKING:
    from remoe_edge.engine.answer import Answer
    from remoe_edge.engine.engine import Engine

_AGAIN_S = 0.05  # a step that was just beginning may have missed the first interrupt
_LOADING_RETRY_S = 5
_LONGEST_RETRY_S = 600


class OneAtATime:
    """Own an engine and the thread that uses it. Implements `Conversations`.

    load_engine: makes the engine, in that thread. queue_limit: requests that may wait beside the one
    that is answered. figures: is told of every request.
    """

    def __init__(
        self, load_engine: Callable[[], Engine], *, queue_limit: int, figures: Figures
    ) -> None:
        self._load_engine = load_engine
        self._queue_limit = queue_limit
        self._figures = figures
        self._changed = threading.Condition()
        self._queue: deque[_Request] = deque()
        self._running: _Request | None = None
        self._engine: Engine | None = None
        self._state = "loading"
        self._failure: Exception | None = None
        self._request_s = 1.0  # how long one takes, lately
        self._thread = threading.Thread(target=self._run, name="remoe-edge-engine", daemon=True)
        self._thread.start()

    # --- what it is ---

    @property
    def state(self) -> str:
        """Say "loading", "ready", "failed" or "closing"."""
        return self._state

    @property
    def failure(self) -> Exception | None:
        """Tell what has failed, None while nothing has."""
        return self._failure

    @property
    def engine(self) -> Engine:
        """Give the engine, to render and tokenize with. Raises NotReady."""
        engine = self._engine
        if self._state == "ready" and engine is not None:
            return engine
        if self._state == "failed":
            raise NotReady(f"the model was not loaded: {self._failure}", _LONGEST_RETRY_S)
        why = "is being loaded" if self._state == "loading" else "is being closed"
        raise NotReady(f"the model {why}", _LOADING_RETRY_S)

    @property
    def load(self) -> Load:
        """Tell how busy it is."""
        with self._changed:
            queued, running = len(self._queue), self._running
        slot = Slot(0, running is not None, *((0, 0) if running is None else running.progress()))
        return Load(queued, self._queue_limit, int(running is not None), (slot,))

    # --- what is asked of it ---

    def submit(self, asks: Sequence[Ask]) -> _Request:
        """Have a request answered; called in the event loop that reads it. Raises QueueFull, NotReady."""
        request = _Request(asks, self._withdraw)
        with self._changed:
            _ = self.engine
            n_before = len(self._queue) + (self._running is not None)
            if n_before > self._queue_limit:
                wait_s = self._request_s * n_before
                self._figures.refused()
                raise QueueFull(
                    f"{len(self._queue)} requests are waiting, and more may not: try again later",
                    max(1, min(round(wait_s), _LONGEST_RETRY_S)),
                )
            self._queue.append(request)
            self._changed.notify_all()
        return request

    def close(self) -> None:
        """Cancel everything and free the engine; returns when that is done. Idempotent."""
        with self._changed:
            if self._state != "failed":
                self._state = "closing"
            requests = [*self._queue, *([self._running] if self._running else [])]
            self._queue.clear()
            self._changed.notify_all()
        for each in requests:
            each.emit(0, Failed(NotReady("the server is stopping", _LOADING_RETRY_S)))
            each.stop()
        while self._thread.is_alive() and self._thread is not threading.current_thread():
            running = self._running
            if running is not None:
                running.stop()
            self._thread.join(_AGAIN_S)

    def _withdraw(self, request: _Request) -> bool:
        """Take a request out of the queue; return whether it is being answered instead."""
        with self._changed:
            if request in self._queue:
                self._queue.remove(request)
                self._figures.cancelled()
                return False
            return self._running is request

    # --- the engine's thread ---

    def _run(self) -> None:
        try:
            engine = self._load_engine()
        except Exception as error:
            self._failure, self._state = error, "failed"
            return
        with self._changed:
            self._engine = engine
            if self._state == "loading":
                self._state = "ready"
        try:
            while (request := self._next()) is not None:
                begun_s = time.monotonic()
                self._answer(engine, request)
                with self._changed:
                    self._running = None
                    self._request_s += 0.3 * (time.monotonic() - begun_s - self._request_s)
        finally:
            with contextlib.suppress(RemoeError):  # a profile that could not be written
                engine.close()

    def _next(self) -> _Request | None:
        with self._changed:
            while not self._queue:
                if self._state == "closing":
                    return None
                self._changed.wait()
            self._running = self._queue.popleft()
            return self._running

    def _answer(self, engine: Engine, request: _Request) -> None:
        """Make a request's answers; whatever goes wrong is that request's error."""
        for index, ask in enumerate(request.asks):
            try:
                answer = engine.generate(
                    ask.tokens,
                    form=ask.form,
                    on_reasoning=request.on_reasoning(index),
                    **ask.sampling,
                )
                request.begin(answer)
                for event in answer_events(engine, answer, ask):
                    request.emit(index, event)
            except (Exception, KeyboardInterrupt) as error:
                self._figures.failed()
                if not isinstance(error, Exception):
                    error = RemoeError("the step was interrupted")
                request.emit(index, Failed(error))
                return
            if request.cancelled:
                self._figures.cancelled()
                return
            self._figures.finished(answer.stats, request.first_s)
        request.end()


class _Request:
    """Hold one request and its events on their way from the engine's thread to the event loop."""

    def __init__(self, asks: Sequence[Ask], withdraw: Callable[[_Request], bool]) -> None:
        self.asks = list(asks)
        self.cancelled = False
        self.came_s = time.monotonic()
        self.first_s: float | None = None  # from when it came to its first event
        self._withdraw = withdraw
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._answer: Answer | None = None

    # --- in the event loop ---

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Give the events until all answers have ended, or one has failed."""
        while (found := await self._events.get()) is not None:
            yield found
            if isinstance(found[1], Failed):
                return

    def cancel(self) -> None:
        """Let the engine go on to others. Idempotent."""
        self.stop()
        if self._withdraw(self) and not self._loop.is_closed():
            self._loop.call_later(_AGAIN_S, self.cancel)

    # --- in whatever thread ---

    def stop(self) -> None:
        """Let no token follow."""
        self.cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    def progress(self) -> tuple[int, int]:
        """Count the tokens of the prompt, and those made from it so far."""
        if self._answer is None:
            return len(self.asks[0].tokens), 0
        usage = self._answer.usage
        return usage.prompt_tokens, usage.completion_tokens

    # --- in the engine's thread ---

    def begin(self, answer: Answer) -> None:
        """Take the answer that is being made now."""
        self._answer = answer
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
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, found)
        except RuntimeError:  # the event loop has gone, and with it the reader
            self.cancelled = True
