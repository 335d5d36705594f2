"""Answer requests one after another, in the order in which they came, in a thread of the engine's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from remoe_edge.errors import RemoeError
from remoe_edge.serve.conversations import Load, Slot
from remoe_edge.serve.engine_thread import EngineThread
from remoe_edge.serve.events import Failed, Vector
from remoe_edge.serve.figures import Figures
from remoe_edge.serve.reading import answer_events
from remoe_edge.serve.request_stream import RequestStream

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine


class OneAtATime(EngineThread):
    """Make one answer at a time. Implements `Conversations`."""

    def __init__(
        self,
        load_engine: Callable[[], Engine],
        *,
        queue_limit: int,
        figures: Figures,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._running: RequestStream | None = None
        super().__init__(load_engine, queue_limit=queue_limit, figures=figures, note=note)

    @property
    def load(self) -> Load:
        """Tell how busy it is."""
        with self._changed:
            queued, running = len(self._queue), self._running
        slot = Slot(0, running is not None, *((0, 0) if running is None else running.progress()))
        return Load(queued, self._queue_limit, int(running is not None), (slot,))

    def _answered(self) -> list[RequestStream]:
        running = self._running
        return [] if running is None else [running]

    def _n_places(self) -> int:
        return 1

    # --- the engine's thread ---

    def _serve(self, engine: Engine) -> None:
        while (request := self._next()) is not None:
            begun_s = time.monotonic()
            self._answer(engine, request)
            self._tell(engine)
            with self._changed:
                self._running = None
                self._took(time.monotonic() - begun_s)

    def _next(self) -> RequestStream | None:
        with self._changed:
            while not self._queue:
                if self._state == "closing":
                    return None
                self._changed.wait()
            self._running = self._queue.popleft()
            return self._running

    def _answer(self, engine: Engine, request: RequestStream) -> None:
        """Make a request's answers; whatever goes wrong is that request's error."""
        for index, ask in enumerate(request.asks):
            try:
                if ask.embeds:
                    if request.cancelled:
                        self._figures.cancelled()
                        return
                    request.emit(index, Vector(engine.embed(ask.tokens), len(ask.tokens)))
                    self._figures.embedded()
                    continue
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
