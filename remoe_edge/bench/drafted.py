"""A text that is read with drafts, as an arm reads it (docs/drafts.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from remoe_edge.engine.draft_governor import Governor
from remoe_edge.engine.drafts import Drafted, governors_of
from remoe_edge.engine.request import asked
from remoe_edge.engine.stats import AnswerStats

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine


class Reading(Drafted):
    """Have the model say what stands in a text, and its own choices where the text has ended.

    So a guess is right if the text goes on with it. `chosen`: what the model would have said last.
    """

    def __init__(self, text: Sequence[int], *args: Any) -> None:
        self._text = iter(text)
        self.chosen = -1
        super().__init__(*args)

    def _first(self) -> int:
        return self._read(super()._first())

    def _says(self, index: int) -> int:
        return self._read(super()._says(index))

    def _read(self, chosen: int) -> int:
        self.chosen = chosen
        return next(self._text, chosen)


def read(
    engine: Engine,
    prompt: Sequence[int],
    text: Sequence[int],
    n_tokens: int,
    stats: AnswerStats,
    governors: Sequence[Governor] | None = None,
) -> Iterator[int]:
    """Compute a prompt, and `n_tokens` further tokens; yield what the model chooses after each.

    text: those tokens; where it is shorter, the model's own choices follow. stats: takes the guesses
    that were made, and how many were right. governors: one for each source of guesses; the engine's own
    unless others are given.
    """
    engine.reset()
    loaded = engine._loaded
    request = asked(loaded, list(prompt), bos=False, temperature=0, max_tokens=1 + n_tokens)
    stats.n_generated = 0
    reading = Reading(text, loaded, request, stats, governors or governors_of(loaded))
    for _ in range(1 + n_tokens):
        with loaded.computing():
            next(reading)
        stats.n_generated += 1
        yield reading.chosen
