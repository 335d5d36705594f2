"""The baseline: an interpolated Kneser-Ney 5-gram over the model's own tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BITS = 12  # a vocabulary of 4096: five tokens fit one int64


class KneserNey:
    """Fit on rows of tokens, judged on one stream; n-grams never cross rows."""

    def __init__(self, rows: npt.NDArray[np.int64], order: int = 5, vocab: int = 4096) -> None:
        if vocab > 1 << BITS:
            raise ValueError(f"a vocabulary of {vocab} does not fit {BITS} bits")
        self.order, self.vocab = order, vocab
        self.levels: list[_Level] = []
        width = rows.shape[1]
        keys = np.zeros((rows.shape[0], width - order + 1), dtype=np.int64)
        for i in range(order):
            keys = (keys << BITS) | rows[:, i : width - order + 1 + i]
        types, counts = np.unique(keys, return_counts=True)
        for n in range(order, 0, -1):
            self.levels.append(_Level(types, counts))
            # Below the top, an n-gram counts once per word that was seen before it.
            types, counts = np.unique(types & ((1 << (BITS * (n - 1))) - 1), return_counts=True)

    def bits(self, stream: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the code length in bits of every token but the first order - 1."""
        probability = np.full(len(stream) - self.order + 1, 1.0 / self.vocab)
        for n, level in zip(range(1, self.order + 1), reversed(self.levels), strict=True):
            keys = np.zeros(len(probability), dtype=np.int64)
            for i in range(self.order - n, self.order):
                keys = (keys << BITS) | stream[i : i + len(probability)]
            probability = level.interpolate(keys, probability)
        return -np.log2(probability)


class _Level:
    """Counts of one order, with one absolute discount."""

    def __init__(self, keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        self.keys, self.counts = keys, counts
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        self.discount = once / (once + 2 * twice) if once and twice else 0.5
        context = keys >> BITS
        starts = np.flatnonzero(np.r_[True, context[1:] != context[:-1]])
        self.contexts = context[starts]
        self.totals = np.add.reduceat(counts, starts)
        self.types = np.diff(np.r_[starts, len(keys)])

    def interpolate(
        self, keys: npt.NDArray[np.int64], lower: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        count = np.where(self.keys[at] == keys, self.counts[at], 0)
        context = keys >> BITS
        at = np.minimum(np.searchsorted(self.contexts, context), len(self.contexts) - 1)
        known = self.contexts[at] == context
        total = np.where(known, self.totals[at], 1)
        left = np.where(known, self.discount * self.types[at] / total, 1.0)
        return np.maximum(count - self.discount, 0) * known / total + left * lower
