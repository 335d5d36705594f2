"""The thread that owns an engine, and the queue of requests before it; who answers them is a subclass."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from remoe_edge.errors import RemoeError
from remoe_edge.serve.conversations import Ask, Load, NotReady, QueueFull
from remoe_edge.serve.events import Failed
from remoe_edge.serve.figures import Figures
from remoe_edge.serve.request_stream import AGAIN_S, RequestStream

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine

_LOADING_RETRY_S = 5
_LONGEST_RETRY_S = 600


class EngineThread(ABC):
    """Own an engine and the thread that uses it: what every `Conversations` has in common.

    load_engine: makes the engine, in that thread. queue_limit: requests that may wait beside those that
    are answered. figures: is told of every request. note: takes in a line what the engine notes once it
    is loaded, in that thread.
    """

    def __init__(
        self,
        load_engine: Callable[[], Engine],
        *,
        queue_limit: int,
        figures: Figures,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._load_engine = load_engine
        self._queue_limit = queue_limit
        self._figures = figures
        self._note = note
        self._n_noted = 0
        self._changed = threading.Condition()
        self._queue: deque[RequestStream] = deque()
        self._engine: Engine | None = None
        self._state = "loading"
        self._failure: Exception | None = None
        self.notes: list[str] = []  # what whoever starts it should know, once it is ready
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
    @abstractmethod
    def load(self) -> Load:
        """Tell how busy it is."""

    # --- what is asked of it ---

    def submit(self, asks: Sequence[Ask]) -> RequestStream:
        """Have a request answered; called in the event loop that reads it. Raises QueueFull, NotReady."""
        request = RequestStream(asks, self._withdraw)
        with self._changed:
            _ = self.engine
            n_places = self._n_places()
            n_before = len(self._queue) + len(self._answered())
            if n_before >= self._queue_limit + n_places:
                wait_s = self._request_s * n_before / n_places
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
            requests = [*self._queue, *self._answered()]
            self._queue.clear()
            self._changed.notify_all()
        for each in requests:
            each.emit(0, Failed(NotReady("the server is stopping", _LOADING_RETRY_S)))
            each.stop()
        while self._thread.is_alive() and self._thread is not threading.current_thread():
            for each in self._answered():
                each.stop()
            self._thread.join(AGAIN_S)

    def _withdraw(self, request: RequestStream) -> bool:
        """Take a request out of the queue; return whether it is being answered instead."""
        with self._changed:
            if request in self._queue:
                self._queue.remove(request)
                self._figures.cancelled()
                return False
            return request in self._answered()

    # --- for who answers ---

    @abstractmethod
    def _answered(self) -> list[RequestStream]:
        """List the requests that are being answered."""

    @abstractmethod
    def _n_places(self) -> int:
        """Count the answers that can be made at a time."""

    @abstractmethod
    def _serve(self, engine: Engine) -> None:
        """Answer what is in the queue until the state is "closing"; in the engine's thread."""

    def _prepare(self, engine: Engine) -> None:  # noqa: B027 - not everybody has to
        """Make what answering takes, in the engine's thread; what it raises is a failure to load."""

    def _tell(self, engine: Engine) -> None:
        """Pass on what the engine has noted since."""
        notes, self._n_noted = engine.notes_since(self._n_noted)
        for note in notes:
            self._note(note)

    def _took(self, seconds: float) -> None:
        self._request_s += 0.3 * (seconds - self._request_s)

    def _run(self) -> None:
        engine = None
        try:
            engine = self._load_engine()
            _, self._n_noted = engine.notes_since(0)  # whoever loads it says those
            self._prepare(engine)
        except Exception as error:
            self._failure, self._state = error, "failed"
            if engine is not None:
                engine.close()
            return
        self._tell(engine)
        with self._changed:
            self._engine = engine
            if self._state == "loading":
                self._state = "ready"
        try:
            self._serve(engine)
        finally:
            try:
                engine.close()
            except RemoeError as error:  # a profile that could not be written
                self._failure = error
            self._tell(engine)
