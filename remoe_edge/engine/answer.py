"""An answer while it comes, and all that is known of it afterwards."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from remoe_edge.engine.channels import PLAIN, AnswerReader
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from remoe_edge.engine.lifecycle import Lifecycle
    from remoe_edge.engine.request import Request

_FINISH = {
    "end": "stop",
    "context": "length",
}  # the rest of `AnswerStats.stop` goes by its own name


@dataclass(frozen=True)
class Usage:
    """Hold how many tokens went in and came out; the end token counts.

    cached_tokens: of the prompt, those that were in the context already. reasoning_tokens: of those that
    came out, those with which reasoning was written.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Give both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """Hold the natural logarithm of a token's probability, before temperature and the like.

    text: its bytes as text, with a replacement character for half a character. top: the likeliest
    tokens in its place, (token id, logprob), the likeliest first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Produced:
    """Hold what an answer has produced so far: what its pieces are made from, and what it keeps.

    n_reused: tokens of the prompt that were not computed again.
    """

    stats: AnswerStats
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    reader: AnswerReader = field(default_factory=PLAIN.reader)  # has the reasoning
    answer: Callable[[], Answer | None] = lambda: None  # not kept: an answer that is dropped ends
    stop_string: str | None = None
    n_reused: int = 0
    cancelled: bool = False
    _interrupt: Callable[[], None] | None = None
    # Taken again by its own thread: a signal's handler may cancel while this thread holds it.
    _lock: AbstractContextManager[bool] = field(default_factory=threading.RLock)

    def runs_with(self, interrupt: Callable[[], None] | None) -> None:
        """Take what stops a step, while the steps are this answer's."""
        with self._lock:
            self._interrupt = interrupt

    def cancel(self) -> None:
        """Let no token follow, and stop the step that is being computed."""
        self.cancelled = True
        with self._lock:  # so that no step of the next answer is stopped
            if self._interrupt is not None:
                self._interrupt()

    @classmethod
    def of(cls, asked: Request, on_reasoning: Callable[[str], object] | None) -> Produced:
        """Begin with nothing but what is asked for."""
        return cls(
            AnswerStats(n_prompt=len(asked.tokens)),
            logprobs=None if asked.logprobs is None else [],
            reader=asked.form.reader(on_reasoning),
        )


class Outcome:
    """Tell what an answer has come to so far."""

    def __init__(self, produced: Produced) -> None:
        self._produced = produced

    @property
    def text(self) -> str:
        """Give the text that has been read so far: all of it after the last piece."""
        return "".join(self._produced.texts)

    @property
    def reasoning(self) -> str:
        """Give what the model has written so far before its answer, on a channel of its own."""
        return self._produced.reader.reasoning

    @property
    def token_ids(self) -> list[int]:
        """List the tokens generated so far, an end token among them."""
        return list(self._produced.token_ids)

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """List the log probabilities of `token_ids`; None unless they were asked for."""
        found = self._produced.logprobs
        return None if found is None else list(found)

    @property
    def finish_reason(self) -> str | None:
        """Say why it ended: "stop" (end token or stop string), "length" (max_tokens or a full context),
        "cancelled" or "error"; None while it has not."""
        stop = self._produced.stats.stop
        return _FINISH.get(stop, stop) or None

    @property
    def stop_string(self) -> str | None:
        """Give the stop string that ended it, None where none did."""
        return self._produced.stop_string

    @property
    def usage(self) -> Usage:
        """Count the prompt's tokens and those generated so far."""
        produced = self._produced
        stats, n_reasoning = produced.stats, produced.reader.n_reasoning
        return Usage(stats.n_prompt, stats.n_generated, produced.n_reused, n_reasoning)

    @property
    def stats(self) -> AnswerStats:
        """Tell what it cost; the counts of the cache are there once it has ended."""
        return self._produced.stats


class Answer(Generator[str, None, None], Outcome):
    """Iterate over the pieces of an answer, whole characters each; then ask it what came of it.

    with engine.chat(messages) as answer:
        for piece in answer:
            print(piece, end="", flush=True)
    print(answer.finish_reason, answer.usage.completion_tokens, answer.stats.ttft_ms)

    Nothing is computed before the first piece is asked for. Until the answer has been read to its end
    or closed (leaving the block, `close`, or dropping it does that), the engine gives no other. Reading
    on raises InputError once the engine is closed, while another answer runs or another thread reads
    this one; UnsupportedError in a forked child; ReadError where storage fails; KeyboardInterrupt.
    """

    def __init__(
        self,
        produced: Produced,
        pieces: Generator[str, None, None],
        lifecycle: Lifecycle,
        engine: object,
    ) -> None:
        Outcome.__init__(self, produced)
        self._pieces = pieces
        self._lifecycle = lifecycle
        self._engine = engine  # it lives as long as its answer
        produced.answer = weakref.ref(self)
        self._ended = self._cut = False

    # --- reading it ---

    def read(self) -> str:
        """Read on to the end, and return the whole text."""
        for _ in self:
            pass
        return self.text

    def send(self, value: None) -> str:
        """Give the next piece: what `next` calls."""
        self._check_cut()
        if self._ended:
            raise StopIteration
        with self._lifecycle.running(self._produced):
            return self._guarded(lambda: self._pieces.send(None))

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> str:
        """Raise an exception where the answer stands, which ends it: "error", or "cancelled" for
        KeyboardInterrupt."""
        error = _exception(typ, val, tb)
        self._check_cut()
        if self._ended or self._lifecycle.forked or self._untouched():
            self._end()
            raise error
        with self._lifecycle.running(self._produced):
            return self._guarded(lambda: self._pieces.throw(error))

    def close(self) -> None:
        """End the answer where it stands; the engine is free for another. Idempotent.

        Raises InputError while another thread reads it.
        """
        if self._ended:
            return
        if self._lifecycle.forked or self._lifecycle.closing:
            self._end()
            return
        if self._untouched():
            self._end()
            return
        with self._lifecycle.running(self._produced):
            self._end()

    def cancel(self) -> None:
        """End it from another thread, before the next token; who reads it finds its end.

        Of a streamed model the step is stopped at its next layer. A step that was just beginning may
        miss that and run to its end: call it again where that matters.
        """
        self._produced.cancel()

    def cut_off(self) -> None:
        """End it because the engine closes: reading on says so. For the engine alone."""
        if not self._ended:
            self._cut = True
            self._end()

    def _untouched(self) -> bool:
        return inspect.getgeneratorstate(self._pieces) == inspect.GEN_CREATED

    def _end(self) -> None:
        self._ended = True
        self._pieces.close()  # of one that has ended it does nothing
        stats = self._produced.stats
        stats.stop = stats.stop or "cancelled"

    def _guarded(self, step: Any) -> str:
        try:
            piece: str = step()
        except BaseException:
            self._ended = True
            raise
        return piece

    def _check_cut(self) -> None:
        if self._cut:
            raise InputError("the engine is closed")

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _exception(typ: Any, val: Any, tb: TracebackType | None) -> BaseException:
    """Make the exception from what a generator's `throw` takes."""
    error = typ if isinstance(typ, BaseException) else val
    if error is None:
        error = typ()
    elif not isinstance(error, BaseException):
        error = typ(*error) if isinstance(error, tuple) else typ(error)
    if not isinstance(error, BaseException):
        raise TypeError("only exceptions can be thrown into an answer")
    return error.with_traceback(tb) if tb is not None else error
