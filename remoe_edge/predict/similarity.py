"""Soft cosine similarity of prompts: how alike two sets of tokens are, related words counting too.

    SCS(a, b) = aᵀ C b / (√(aᵀ C a) · √(bᵀ C b) + σ)

with a, b = 1 for the tokens that a prompt has and 0 for the others, and C = the inner products of
the tokens' unit embeddings (arXiv 2512.18674). C never has to be written out: aᵀ C b is the inner
product of the two prompts' summed embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from remoe_edge.predict.embeddings import Floats, TokenEmbeddings

SIGMA = 1e-8


def summary(tokens: Sequence[int], embeddings: TokenEmbeddings) -> Floats:
    """Sum the unit embeddings of a prompt's distinct tokens, [width]: all that comparing needs."""
    distinct = sorted(set(tokens))
    return np.asarray(embeddings.unit(distinct).sum(0, dtype=np.float64), np.float32)


def soft_cosine(a: Floats, b: Floats, sigma: float = SIGMA) -> Floats:
    """Compare summaries, [n, width] with [m, width]; gives [n, m] in −1 … 1."""
    products = a @ b.T
    lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.asarray(products / (lengths + sigma), np.float32)
