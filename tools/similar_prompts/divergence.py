"""How far a predicted activation lies from the true one."""

from __future__ import annotations

import numpy as np

from remoe_edge.predict.embeddings import Floats


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Give the Jensen-Shannon divergence in bits, 0 … 1, the mean over layers [layers, experts]."""
    a, b = (np.asarray(each, np.float64) for each in (p, q))
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    middle = (a + b) / 2
    return float(np.mean((_relative(a, middle) + _relative(b, middle)) / 2))


def _relative(p: Floats, q: Floats) -> Floats:
    """Give each row's Kullback-Leibler divergence in bits; 0·log 0 counts 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / q), 0.0)
    return np.asarray(terms.sum(1))
