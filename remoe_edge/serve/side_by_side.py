"""Answer several requests at a time: the engine's batch has a place for each, others wait in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from remoe_edge.engine.schedule import Schedule
from remoe_edge.errors import RemoeError
from remoe_edge.serve.conversations import Ask, Load, Slot
from remoe_edge.serve.engine_thread import EngineThread
from remoe_edge.serve.events import Event, Failed, Vector
from remoe_edge.serve.figures import Figures
from remoe_edge.serve.reading import Reading
from remoe_edge.serve.request_stream import RequestStream

if TYPE_CHECKING:
    from remoe_edge.engine.batching import ContinuousBatch
    from remoe_edge.engine.conversation import Conversation
    from remoe_edge.engine.engine import Engine


class SideBySide(EngineThread):
    """Make as many answers at a time as the engine has places (`parallel`). Implements `Conversations`.

    max_pause_s, max_wait_s: how long an answer may stand still while others are made, and how long it may
    take until its prompt is begun. most_together: answers that are computed in one step, 0 sets no
    limit. keep_states: a folder where conversations outlive the server, and the bytes that they may take.
    """

    def __init__(
        self,
        load_engine: Callable[[], Engine],
        *,
        queue_limit: int,
        figures: Figures,
        note: Callable[[str], None] = lambda line: None,
        max_pause_s: float = 5.0,
        max_wait_s: float = 180.0,
        most_together: int = 0,
        keep_states: tuple[Path, int] | None = None,
    ) -> None:
        self._keep_states = keep_states
        self._schedule = Schedule(max_pause_s, max_wait_s=max_wait_s, most=most_together)
        self._batch: ContinuousBatch | None = None
        self._begun: dict[RequestStream, _Answers] = {}  # requests of which an answer has begun
        self._next_asks: deque[tuple[_Answers, int]] = deque()  # the rest of theirs
        super().__init__(load_engine, queue_limit=queue_limit, figures=figures, note=note)

    @property
    def load(self) -> Load:
        """Tell how busy it is."""
        batch = self._batch
        running = {} if batch is None else {each.id: each for each in batch.conversations}
        slots = []
        for id in range(self._n_places()):
            found = running.get(id)
            if found is None:
                slots.append(Slot(id, busy=False))
            else:
                usage = found.usage
                slots.append(Slot(id, True, usage.prompt_tokens, usage.completion_tokens))
        with self._changed:
            return Load(len(self._queue), self._queue_limit, len(self._begun), tuple(slots))

    def _answered(self) -> list[RequestStream]:
        return list(self._begun)

    def _n_places(self) -> int:
        return 1 if self._engine is None else self._engine.parallel

    # --- the engine's thread ---

    def _prepare(self, engine: Engine) -> None:
        self._batch = engine.batch(self._schedule)
        if self._batch.why_not_shared:
            self.notes.append(f"prompts share no beginning: {self._batch.why_not_shared}")
        if self._keep_states is not None:
            self._batch.keep_states(*self._keep_states)

    def _serve(self, engine: Engine) -> None:
        batch = self._batch
        assert batch is not None
        try:
            while self._wait(batch):
                self._fill(engine, batch)
                try:
                    batch.step()
                except KeyboardInterrupt:
                    self._fail_all(RemoeError("the step was interrupted"))
                except Exception as error:
                    self._fail_all(error)
                self._tell(engine)
        finally:
            self._fail_all(RemoeError("the server is stopping"))
            batch.close()

    def _wait(self, batch: ContinuousBatch) -> bool:
        """Wait for something to do; return False where the end is asked for."""
        if self._begun and self._state != "closing":
            return True
        with self._changed:
            while not self._queue and not self._begun and self._state != "closing":
                self._changed.wait()
            return self._state != "closing"

    def _fill(self, engine: Engine, batch: ContinuousBatch) -> None:
        """Begin what waits, in order, while there are places."""
        while batch.n_free:
            if not self._next_asks:
                with self._changed:
                    if not self._queue:
                        return
                    request = self._queue.popleft()
                    answers = self._begun[request] = _Answers(self, engine, request)
                self._next_asks.extend((answers, i) for i in range(len(request.asks)))
            answers, index = self._next_asks.popleft()
            answers.begin(batch, index)

    def _fail_all(self, error: Exception) -> None:
        for answers in list(self._begun.values()):
            answers.fail(0, error)

    def _over(self, answers: _Answers) -> None:
        """Forget a request: all of its answers have ended, or it has failed or was cancelled."""
        with self._changed:
            self._begun.pop(answers.request, None)
            self._took(time.monotonic() - answers.begun_s)
        self._next_asks = deque(each for each in self._next_asks if each[0] is not answers)


class _Answers:
    """The answers to one request, on their way from the batch to its stream."""

    def __init__(self, owner: SideBySide, engine: Engine, request: RequestStream) -> None:
        self._owner, self._engine, self.request = owner, engine, request
        self._figures = owner._figures
        self.begun_s = time.monotonic()
        self._running: list[Conversation] = []
        self._n_left = len(request.asks)
        self._is_over = False

    def begin(self, batch: ContinuousBatch, index: int) -> None:
        """Have an answer join the batch."""
        if self._is_over:
            return
        if self.request.cancelled:
            self._cancelled()
            return
        ask = self.request.asks[index]
        if ask.embeds:
            self._embed(batch, index, ask)
            return
        answer = _Answer(self, index)
        try:
            begun = batch.join(
                ask.tokens,
                answer,
                form=ask.form,
                on_reasoning=self.request.on_reasoning(index),
                goes_on=ask.goes_on,
                **ask.sampling,
            )
        except Exception as error:
            self.fail(index, error)
            return
        answer.reading = Reading(self._engine, begun, ask)
        answer.conversation = begun
        self._running.append(begun)
        self.request.begin(begun)

    def _embed(self, batch: ContinuousBatch, index: int, ask: Ask) -> None:
        try:
            self.emit(index, Vector(batch.embed(ask.tokens), len(ask.tokens)))
        except Exception as error:
            self.fail(index, error)
            return
        self._figures.embedded()
        self._one_less()

    def ended(self, conversation: Conversation) -> None:
        """Count an answer that has ended."""
        self._running.remove(conversation)
        if self._is_over:
            return
        if self.request.cancelled:
            self._cancelled()
            return
        self._figures.finished(conversation.stats, self.request.first_s)
        self._one_less()

    def _one_less(self) -> None:
        self._n_left -= 1
        if self._n_left == 0:
            self._end()
            self.request.end()

    def fail(self, index: int, error: Exception) -> None:
        """End the request with an error; its other answers are cancelled."""
        if self._is_over:
            return
        if self.request.cancelled:
            self._cancelled()
            return
        self._figures.failed()
        self._end()
        self.request.emit(index, Failed(error))

    def emit(self, index: int, event: Event) -> None:
        """Hand an event on."""
        if not self._is_over:
            self.request.emit(index, event)

    def _cancelled(self) -> None:
        self._figures.cancelled()
        self._end()

    def _end(self) -> None:
        self._is_over = True
        for each in self._running:
            each.cancel()
        self.request.leave()
        self._owner._over(self)


class _Answer:
    """Hear of one answer. Implements the engine's `Listener`."""

    reading: Reading
    conversation: Conversation

    def __init__(self, answers: _Answers, index: int) -> None:
        self._answers, self._index = answers, index

    def piece(self, text: str) -> None:
        """Hand a piece on as what it means."""
        for event in self.reading.feed(text):
            self._answers.emit(self._index, event)
        if self.reading.stopped:
            self.conversation.cancel()

    def ended(self) -> None:
        """Hand on how it ended."""
        for event in self.reading.end():
            self._answers.emit(self._index, event)
        self._answers.ended(self._left())

    def failed(self, error: Exception) -> None:
        """Hand the error on."""
        self._answers._running.remove(self._left())
        self._answers.fail(self._index, error)

    def _left(self) -> Conversation:
        """Let go of the conversation, which holds this: else its memory waits for the collector."""
        conversation = self.conversation
        del self.conversation, self.reading
        return conversation
