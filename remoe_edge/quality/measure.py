"""Measure one setting on texts: each token's probability, the likeliest one, and what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.reading import read_whole

Progress = Callable[[int], None]


class MeasuredEngine(Protocol):
    """What of an engine is used here."""

    def evaluate(self, tokens: Sequence[int], *, reset: bool = True) -> npt.NDArray[np.float32]:
        """Run tokens and give the logits after the last one."""
        ...

    def counts(self) -> dict[str, int]:
        """Give the core's counts."""
        ...


@dataclass(frozen=True)
class Text:
    """Hold a text's windows of tokens, all of one length."""

    name: str
    sha256: str
    windows: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Count the tokens that are predicted."""
        return sum(len(window) - 1 for window in self.windows)


def load_text(
    path: Path, tokenize: Callable[[str], Sequence[int]], window: int, n_tokens: int
) -> Text:
    """Cut a text into windows, spread over it evenly; n_tokens: of all of them, 0 takes all.

    Raises InputError where it is no text, or too short for one window.
    """
    raw = read_whole(path, "text")
    try:
        tokens = list(tokenize(raw.decode()))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: at offset {error.start}: no UTF-8 text") from error
    there = len(tokens) // window
    if there == 0:
        raise InputError(f"{path} has {len(tokens)} tokens: a window takes {window} (--window)")
    n = min(there, max(1, n_tokens // window)) if n_tokens else there
    starts = [(i * there // n) * window for i in range(n)]
    return Text(
        path.stem,
        hashlib.sha256(raw).hexdigest(),
        tuple(tuple(tokens[at : at + window]) for at in starts),
    )


@dataclass(frozen=True)
class Measured:
    """Hold what one setting gave, by text: nll and best are [windows, tokens], in nats and token ids."""

    nll: dict[str, npt.NDArray[np.float64]]
    best: dict[str, npt.NDArray[np.int64]]
    counts: dict[str, int]  # the core's, of all texts
    n_tokens: int


def measure(engine: MeasuredEngine, texts: Sequence[Text], progress: Progress) -> Measured:
    """Decode every window token by token, each from an empty context, on a cache that was filled.

    The first text's first window fills the cache and is not counted.
    """
    _window(engine, texts[0].windows[0])
    before = engine.counts()
    nll, best, done = {}, {}, 0
    for text in texts:
        rows = []
        for window in text.windows:
            rows.append(_window(engine, window))
            done += len(window) - 1
            progress(done)
        nll[text.name] = np.stack([row[0] for row in rows])
        best[text.name] = np.stack([row[1] for row in rows])
    counts = {name: value - before[name] for name, value in engine.counts().items()}
    return Measured(nll, best, counts, done)


def _window(
    engine: MeasuredEngine, window: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    nll, best = [], []
    for i, (token, following) in enumerate(pairwise(window)):
        logits = engine.evaluate([token], reset=i == 0).astype(np.float64)
        top = logits.max()
        nll.append(top + np.log(np.exp(logits - top).sum()) - logits[following])
        best.append(int(logits.argmax()))
    return np.array(nll), np.array(best, np.int64)
