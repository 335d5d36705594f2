"""Guess the next tokens from what was written before, and verify the guesses in one step.

Prompt lookup: where the last few tokens stood before, what followed them then is the guess. A step that
computes several tokens reads an expert once that they share, so that right guesses cost fewer bytes for
a token, and wrong ones more. `Governor` has them made only while a token gets cheaper by the clock.

Every token is sampled from its own row of logits, in order, so that a guess is kept only where the
model would have said the same. Source of the method: prompt lookup decoding, Saxena 2023.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.request import Request
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.engine.step_batch import StepBatch

MOST_GUESSES = 6  # with the token before them: from eight rows on ggml rounds in another way
_LONGEST, _SHORTEST = 4, 2  # tokens that have to stand there again


class PromptLookup:
    """Remember where runs of tokens stood. One conversation, one thread."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # What followed a run when it stood there last: the index of the next token.
        self._next: dict[tuple[int, ...], int] = {}

    def add(self, tokens: list[int]) -> None:
        """Take in the tokens that came since."""
        for token in tokens:
            end = len(self._tokens)
            for n in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._next[tuple(self._tokens[end - n :])] = end
            self._tokens.append(token)

    def guess(self, n_most: int) -> list[int]:
        """Give up to `n_most` tokens that may follow; none where the last ones stood nowhere."""
        end = len(self._tokens)
        for n in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            at = self._next.get(tuple(self._tokens[end - n :]))
            if at is not None:
                return self._tokens[at : at + n_most]
        return []


class Governor:
    """Decide how many tokens to guess, by what a token costs with guesses and without.

    It compares blocks of steps with guesses against plain steps before and among them, and stays with
    what is cheaper: guesses are tried again after a pause that doubles with each trial that is lost.
    always: guess whatever it costs.
    """

    BLOCK = 8  # steps with guesses until they are judged
    PLAIN_EVERY = 16  # one plain step among so many, to know what it costs
    FIRST_PAUSE, LONGEST_PAUSE = 32, 1024
    _FADE = 0.8

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self._plain_ms: float | None = None
        self._ms, self._tokens, self._steps = 0.0, 0, 0
        self._wait, self._pause = 2, self.FIRST_PAUSE
        self._since_plain = 0
        self._length = 3

    def n_guesses(self) -> int:
        """Say how many tokens the next step may guess."""
        if self._always:
            return self._length
        if self._wait > 0 or self._since_plain >= self.PLAIN_EVERY:
            return 0
        return self._length

    def after(self, ms: float, n_guessed: int, n_right: int) -> None:
        """Take in what a step cost that guessed so many tokens, and how many were right."""
        if n_guessed == 0:
            self._since_plain = 0
            self._wait = max(0, self._wait - 1)
            known = self._plain_ms
            self._plain_ms = ms if known is None else known * self._FADE + ms * (1 - self._FADE)
            return
        if n_right == n_guessed:
            self._length = min(self._length + 1, MOST_GUESSES)
        elif n_right == 0:
            self._length = max(self._length - 1, 1)
        self._since_plain += 1
        self._ms, self._tokens, self._steps = (
            self._ms + ms,
            self._tokens + 1 + n_right,
            self._steps + 1,
        )
        if self._steps >= self.BLOCK:
            self._judge()

    def _judge(self) -> None:
        lost = self._plain_ms is not None and self._ms / self._tokens > self._plain_ms
        self._ms, self._tokens, self._steps = 0.0, 0, 0
        if lost:
            self._wait, self._pause = self._pause, min(2 * self._pause, self.LONGEST_PAUSE)
        else:
            self._pause = self.FIRST_PAUSE


class Drafted:
    """Iterate over an answer's tokens, guesses verified; the first comes from llama-cpp-python.

    index: where in the last step the row of logits lies that the last token was sampled from.
    """

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        stats: AnswerStats,
        governor: Governor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loaded, self._request, self._stats = loaded, request, stats
        self._governor, self._clock = governor, clock
        self._batch = StepBatch(1 + MOST_GUESSES)
        self.index = -1
        self._tokens = self._generated()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._tokens)

    def _generated(self) -> Iterator[int]:
        loaded, request, lookup = self._loaded, self._request, PromptLookup()
        llama = loaded.llama
        lookup.add(request.tokens)
        token = self._first()
        while True:
            lookup.add([token])
            yield token
            guesses = lookup.guess(min(self._governor.n_guesses(), self._room()))
            n_right, ms = 0, 0.0
            began = self._clock()
            self._compute(llama, [token, *guesses])
            for index, guess in enumerate(itertools.chain(guesses, [None])):
                token, self.index = self._says(index), index
                if index == 0:  # what the caller does between two tokens is not the step's
                    ms = (self._clock() - began) * 1000
                if token != guess:
                    break
                n_right += 1
                lookup.add([token])
                yield token
                llama.n_tokens += 1  # it has been computed already
            self._stats.guessed += len(guesses)
            self._stats.guessed_right += n_right
            self._governor.after(ms, len(guesses), n_right)

    def _room(self) -> int:
        """Count the tokens that may follow the one that is computed next."""
        n_left = self._request.max_tokens - self._stats.n_generated
        in_context = self._loaded.n_ctx - int(self._loaded.llama.n_tokens)
        return min(MOST_GUESSES, n_left - 1, in_context - 1)

    def _first(self) -> int:
        """Compute the prompt; give the token that the model says after it."""
        request = self._request
        return int(next(self._loaded.llama.generate(request.tokens, **request.sampling)))

    def _says(self, index: int) -> int:
        """Give the token that the model says after the one at `index` of the step."""
        llama = self._loaded.llama
        return int(llama._sampler.sample(llama._ctx, index))

    def _compute(self, llama: Any, tokens: list[int]) -> None:
        """Run a step; of its tokens the first is part of the answer, the others if they are right."""
        begin = int(llama.n_tokens)
        llama._ctx.kv_cache_seq_rm(-1, begin, -1)  # guesses that were wrong
        # The last row may be a wrong guess's: a prompt that is just this context computes again.
        llama._requires_eval = True
        self._batch.clear()
        self._batch.add_ones((0, begin + i, token) for i, token in enumerate(tokens))
        native = self._loaded.native
        if native is not None:
            native.declare_steps("draft")
        try:
            self._batch.decode(llama)
        finally:
            if native is not None:
                native.declare_steps("by-tokens")
        llama.input_ids[begin : begin + len(tokens)] = tokens
        llama.n_tokens = begin + 1
