"""Guess the next tokens from what was written before, and verify the guesses in one step.

Prompt lookup: where the last few tokens stood before, what followed them then is the guess. A step that
computes several tokens reads an expert once that they share, so that right guesses cost fewer bytes for
a token, and wrong ones more. `Governor` has them made only while a token gets cheaper by the clock. The
model's own heads can guess too, where the text has nothing to say (`heads.py`).

Every token is sampled from its own row of logits, in order, so that a guess is kept only where the
model would have said the same. Source of the method: prompt lookup decoding, Saxena 2023.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from remoe_edge.engine.draft_governor import MOST_GUESSES, Governor
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.request import Request
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.engine.step_batch import StepBatch, declared_draft

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

    def follow(self, token: int, row: int) -> None:
        """Take in a token, wherever it was said."""
        self.add([token])

    def guess(self, n_most: int) -> list[int]:
        """Give up to `n_most` tokens that may follow; none where the last ones stood nowhere."""
        end = len(self._tokens)
        for n in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            at = self._next.get(tuple(self._tokens[end - n :]))
            if at is not None:
                return self._tokens[at : at + n_most]
        return []


def governors_of(loaded: Loaded) -> list[Governor]:
    """Give those that say when an engine guesses, one for each source of guesses."""
    if not loaded.governors:
        always = loaded.settings.draft == "on"
        n_sources = 1 if loaded.heads is None else 2
        loaded.governors = [Governor(always=always) for _ in range(n_sources)]
    return loaded.governors


class DraftSource(Protocol):
    """Guess tokens, and hear of every token that the model says."""

    def follow(self, token: int, row: int) -> None:
        """Take in the token that the model says after the one at `row` of its last step."""

    def guess(self, n_most: int) -> list[int]:
        """Give up to `n_most` tokens that may follow; none where nothing can be said."""


class Drafted:
    """Iterate over an answer's tokens, guesses verified; the first comes from llama-cpp-python.

    governors: one for each source, the text first and then the model's heads where it has some; they
    outlive the answer. index: where in the last step the row of logits lies that the last token was
    sampled from.
    """

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        stats: AnswerStats,
        governors: Sequence[Governor],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loaded, self._request, self._stats = loaded, request, stats
        self._clock = clock
        lookup = PromptLookup()
        lookup.add(request.tokens)
        sources: list[DraftSource] = [lookup]
        if loaded.heads is not None:
            loaded.heads.begin()
            sources.append(loaded.heads)
        self._sources = list(zip(sources, governors, strict=True))
        for governor in governors:
            governor.begin()
        self._batch = StepBatch(1 + MOST_GUESSES)
        self.index = -1
        self._tokens = self._generated()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._tokens)

    def _generated(self) -> Iterator[int]:
        llama = self._loaded.llama
        token = self._first()
        self._follow(token, llama._batch.n_tokens() - 1)
        while True:
            yield token
            began = self._clock()
            guesses, guesser = self._guess()
            n_right, ms = 0, 0.0
            self._compute(llama, [token, *guesses])
            for index, guess in enumerate(itertools.chain(guesses, [None])):
                token, self.index = self._says(index), index
                self._follow(token, index)
                if index == 0:  # what the caller does between two tokens is not the step's
                    ms = (self._clock() - began) * 1000
                if token != guess:
                    break
                n_right += 1
                yield token
                llama.n_tokens += 1  # it has been computed already
            self._stats.guessed += len(guesses)
            self._stats.guessed_right += n_right
            for _, governor in self._sources:
                if governor is guesser or not guesses:  # another one's guesses tell it nothing
                    governor.after(ms, len(guesses), n_right)

    def _guess(self) -> tuple[list[int], Governor | None]:
        """Give the first source's guesses that has some, and who said that it may."""
        room = self._room()
        for source, governor in self._sources:
            n_most = min(governor.n_guesses(), room)
            if n_most > 0 and (guesses := source.guess(n_most)):
                return guesses, governor
        return [], None

    def _follow(self, token: int, row: int) -> None:
        for source, _ in self._sources:
            source.follow(token, row)

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
        with declared_draft(self._loaded.native):
            self._batch.decode(llama)
        llama.input_ids[begin : begin + len(tokens)] = tokens
        llama.n_tokens = begin + 1
