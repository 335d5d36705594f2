"""Answer a request token by token: sample, tell the observers, give out text, count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator

from remoe_edge.engine import lifecycle
from remoe_edge.engine.answer import Produced
from remoe_edge.engine.drafts import Drafted, governors_of
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.places import common
from remoe_edge.engine.request import Request
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.engine.step_batch import declared
from remoe_edge.engine.writer import Writer
from remoe_edge.native import llama_cpp


def pieces(loaded: Loaded, request: Request, produced: Produced) -> Generator[str, None, None]:
    """Yield a request's answer piece by piece; fill in `produced`.

    Whoever drives it is inside `loaded.life.running(produced)`. The engine is taken at the first piece
    and free again however this ends.
    """
    life, stats = loaded.life, produced.stats
    tokens = _Tokens(loaded, request, produced)
    try:
        life.begin(produced)
        loaded.answer, loaded.last = produced.answer, stats
        loaded.observers.begin(len(request.tokens))
        if loaded.native is not None:
            loaded.native.check_unchanged()
        produced.runs_with(loaded.interrupt)
        with _leased(loaded, request), _remembered(loaded, request):
            yield from _texts(tokens, produced)
    except (GeneratorExit, KeyboardInterrupt):
        stats.stop = "cancelled"
        raise
    except BaseException:
        stats.stop = "error"
        raise
    finally:
        produced.runs_with(None)
        try:
            if not life.forked:
                _account(loaded, tokens, stats)
        finally:
            life.end(produced)  # whatever an observer or Ctrl-C does: the engine is free


def _account(loaded: Loaded, tokens: _Tokens, stats: AnswerStats) -> None:
    stats.count(tokens.start, tokens.first, loaded.counts())
    if not loaded.life.closing:
        loaded.warm()
    loaded.observers.answer(stats)


def _texts(tokens: _Tokens, produced: Produced) -> Generator[str, None, None]:
    stats, writer = produced.stats, tokens.writer
    while not stats.stop:
        token = _next(tokens, produced)
        if produced.cancelled:
            stats.stop = "cancelled"
        elif token is None:
            stats.stop = "length"
        else:
            given = writer.take(token, int(tokens.loaded.llama.n_tokens))
            if given:
                with tokens.paused():
                    yield given
    rest = writer.rest()
    if rest:
        yield rest


def _next(tokens: _Tokens, produced: Produced) -> int | None:
    """Give the next token; None where there is none, or where the answer was cancelled meanwhile."""
    try:
        return None if produced.cancelled else tokens.next()
    except KeyboardInterrupt:
        if produced.cancelled:
            return None
        raise


class _Tokens:
    """Compute one token after another, and account for each."""

    def __init__(self, loaded: Loaded, request: Request, produced: Produced) -> None:
        self.loaded = loaded
        self._request, self._produced = request, produced
        self.writer = Writer(loaded, request, produced)
        self.start = self.first = self._counts = loaded.counts()
        llama = loaded.llama
        llama.set_seed(llama_cpp.LLAMA_DEFAULT_SEED if request.seed is None else request.seed)
        produced.n_reused = _held(loaded, request.tokens)
        loaded.lost = False  # an answer begins with its prompt
        self._stream: Iterator[int] = iter(())
        self._drafted: Drafted | None = None
        if request.max_tokens and loaded.settings.draft != "off":
            self._stream = self._drafted = Drafted(
                loaded, request, produced.stats, governors_of(loaded)
            )
        elif request.max_tokens:
            self._stream = llama.generate(request.tokens, **request.sampling)
        self._clock = time.perf_counter()

    def next(self) -> int | None:
        """Give the next token; None where there is none."""
        loaded, produced, stats = self.loaded, self._produced, self._produced.stats
        with loaded.computing(), self._prompt_declared():
            token = next(self._stream, None)
        if token is None:
            return None
        row = -1 if self._drafted is None else self._drafted.index
        loaded.check_finite(row)
        clock, now = self._clock, time.perf_counter()
        if stats.n_generated == 0:
            stats.ttft_ms = (now - clock) * 1000
            self.first = loaded.counts()
        else:
            stats.token_ms.append((now - clock) * 1000)
        self.writer.record(token, None if produced.logprobs is None else loaded.logits(row))
        if loaded.observers:
            phase, n = ("decode", 1) if stats.token_ms else ("prefill", len(self._request.tokens))
            self._counts = loaded.tell(phase, n, clock, now, self._counts)
        self._clock = now
        return int(token)

    def _prompt_declared(self) -> contextlib.AbstractContextManager[None]:
        """Have a prompt's pieces of one token known as such where decoding is with loss, and they not."""
        if not self.loaded.lossy or self._produced.stats.n_generated:
            return contextlib.nullcontext()
        return declared(self.loaded.native, "prompt")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes: the caller's between two pieces is not the model's."""
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun


def _held(loaded: Loaded, prompt: list[int]) -> int:
    """Count the tokens of a prompt that `Llama.generate` will find in the context."""
    llama = loaded.llama
    before = llama.input_ids[: llama.n_tokens].tolist()
    n = common(before, prompt)
    if loaded.recurrent and n < len(before):
        return 0  # no token can be taken back there
    return min(n, len(prompt) - 1)


@contextlib.contextmanager
def _leased(loaded: Loaded, request: Request) -> Iterator[None]:
    """Have functions beside the answer that it will ask, where the engine was given some."""
    functions, past = loaded.functions, loaded.past_prompts
    if functions is None or loaded.native is None:
        yield
        return
    beside = functions.beside(None if past is None else past.shares(request.tokens))
    beside.__enter__()
    try:
        yield
    finally:
        if not loaded.life.forked:  # a child has none of its threads
            beside.__exit__(None, None, None)


@contextlib.contextmanager
def _remembered(loaded: Loaded, request: Request) -> Iterator[None]:
    """Have past prompts beside the answer, where the engine was given some."""
    if loaded.past_prompts is None or loaded.native is None:
        yield
        return
    beside = loaded.past_prompts.beside(loaded.native, request.tokens)
    beside.__enter__()
    try:
        yield
    finally:
        if loaded.life.forked:
            lifecycle.keep_forever(beside)
        else:
            beside.__exit__(None, None, None)
