"""Answers of an engine's batch, for tests: listeners that keep what they hear, and answers made alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remoe_edge import Engine
from remoe_edge.engine.batching import ContinuousBatch
from remoe_edge.engine.conversation import Conversation
from remoe_edge.engine.schedule import Schedule

ALL = 0  # a group of all
GREEDY: dict[str, Any] = {"temperature": 0}


class Heard:
    """Keep what is told of one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.error: Exception | None = None
        self.n_ends = 0

    def piece(self, text: str) -> None:
        assert self.n_ends == 0
        self.text += text

    def ended(self) -> None:
        self.n_ends += 1

    def failed(self, error: Exception) -> None:
        self.error = error
        self.n_ends += 1


def prompt(length: int, which: int = 0) -> list[int]:
    return [((37 + 2 * which) * i + 11 + 13 * which) % 200 + 5 for i in range(length)]


@contextmanager
def batch_of(
    path: Path, n_places: int, *, group: int = 1, length: int = 4, **settings: Any
) -> Iterator[ContinuousBatch]:
    """Have a batch with slices of that length and groups of that size."""
    chosen = {"cache": "50%", "n_ctx": 512, "threads": 1, **settings}
    with Engine(path, parallel=n_places, **chosen) as engine:
        # Nothing ends an answer by itself.
        engine._loaded.is_end = lambda token: False  # type: ignore[method-assign]
        batch = engine.batch(Schedule(fixed=(group, length)))
        yield batch
        batch.close()


def run(batch: ContinuousBatch) -> None:
    """Make all answers to their ends."""
    while batch.step():
        pass
    assert not batch.conversations


def join(
    batch: ContinuousBatch, tokens: Sequence[int], n: int, **settings: Any
) -> tuple[Conversation, Heard]:
    heard = Heard()
    asked = {**GREEDY, "max_tokens": n, **settings}
    return batch.join(tokens, heard, **asked), heard


_alone: dict[object, Engine] = {}


def alone(
    path: Path, turns: Sequence[tuple[Sequence[int], dict[str, Any]]], **settings: Any
) -> Any:
    """Make answers one after another in an engine where nothing else is; give the last."""
    key = (path, tuple(sorted(settings.items())))
    if key not in _alone:
        end_alone()
        _alone[key] = Engine(path, **{"cache": "50%", "n_ctx": 512, "threads": 1, **settings})
        _alone[key]._loaded.is_end = lambda token: False  # type: ignore[method-assign]
    engine = _alone[key]
    engine.reset()
    for tokens, asked in turns:
        answer = engine.generate(tokens, **{**GREEDY, **asked})
        answer.read()
    return answer


def end_alone() -> None:
    """Close the engine that makes answers alone."""
    while _alone:
        _alone.popitem()[1].close()
