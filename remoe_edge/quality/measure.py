"""Measure one setting on texts: each token's probability, the likeliest one, and what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.reading import read_text

Progress = Callable[[int], None]

_HEADS = 256


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
    text = read_text(path, "text")
    tokens = list(tokenize(text))
    there = len(tokens) // window
    if there == 0:
        raise InputError(f"{path} has {len(tokens)} tokens: a window takes {window} (--window)")
    n = min(there, max(1, n_tokens // window)) if n_tokens else there
    starts = [(i * there // n) * window for i in range(n)]
    return Text(
        path.stem,
        hashlib.sha256(text.encode()).hexdigest(),
        tuple(tuple(tokens[at : at + window]) for at in starts),
    )


@dataclass(frozen=True)
class Heads:
    """Hold the likeliest tokens of positions and log their probabilities, [windows, tokens, heads]."""

    ids: npt.NDArray[np.int64]
    logs: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Hold what one setting gave, by text: nll and divergence are [windows, tokens], in nats.

    divergence: KL of the next token's distribution, from that without loss. It is taken over the
    likeliest tokens and all others as one, which is a little less than the whole.
    """

    nll: dict[str, npt.NDArray[np.float64]]
    divergence: dict[str, npt.NDArray[np.float64]]
    heads: dict[str, Heads]
    counts: dict[str, int]  # the core's, of all texts
    n_tokens: int


def measure(
    engine: MeasuredEngine, texts: Sequence[Text], progress: Progress, base: Measured | None = None
) -> Measured:
    """Decode every window token by token, each from an empty context, on a cache that was filled.

    The first text's first window fills the cache and is not counted. base: what came without loss.
    """
    for _ in _logs(engine, texts[0].windows[0]):
        pass
    before = engine.counts()
    nll, divergence, heads, done = {}, {}, {}, 0
    for text in texts:
        shape = (len(text.windows), len(text.windows[0]) - 1)
        nll[text.name], divergence[text.name] = np.zeros(shape), np.zeros(shape)
        found = []
        for w, window in enumerate(text.windows):
            for i, logs in enumerate(_logs(engine, window)):
                nll[text.name][w, i] = -logs[window[i + 1]]
                found.append(_head(logs))
                if base is not None:
                    wanted = base.heads[text.name]
                    divergence[text.name][w, i] = _diverged(
                        wanted.logs[w, i], logs[wanted.ids[w, i]]
                    )
            done += shape[1]
            progress(done)
        ids, values = (np.stack(each).reshape(*shape, -1) for each in zip(*found, strict=True))
        heads[text.name] = Heads(ids, values)
    counts = {name: value - before[name] for name, value in engine.counts().items()}
    return Measured(nll, divergence, heads, counts, done)


def _logs(engine: MeasuredEngine, window: Sequence[int]) -> Iterator[npt.NDArray[np.float64]]:
    """Give the logarithms of all tokens' probabilities after each token but the last."""
    for i, token in enumerate(window[:-1]):
        logits = engine.evaluate([token], reset=i == 0).astype(np.float64)
        logits -= logits.max()
        yield logits - np.log(np.exp(logits).sum())


def _head(
    logs: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    n = min(_HEADS, len(logs))
    ids = np.argpartition(-logs, n - 1)[:n]
    ids = ids[np.argsort(-logs[ids], kind="stable")]
    return ids, logs[ids]


def _diverged(was: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> float:
    """Give the divergence of the same tokens' log probabilities, and of all others' as one."""
    p = np.exp(was)
    rest_was, rest_now = (max(1 - float(np.exp(each).sum()), 1e-12) for each in (was, now))
    return float((p * (was - now)).sum()) + rest_was * float(np.log(rest_was / rest_now))
