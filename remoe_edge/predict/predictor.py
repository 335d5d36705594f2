"""Predict a prompt's expert activations from those of the most similar past prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.predict.embeddings import Floats, TokenEmbeddings
from remoe_edge.predict.similarity import soft_cosine, summary
from remoe_edge.predict.store import PromptStore

Indices = npt.NDArray[np.int64]

ALPHA = 15


@dataclass(frozen=True)
class Neighbours:
    """Hold the past prompts found, the nearest first, their similarities and weights."""

    prompts: tuple[int, ...]
    similarity: tuple[float, ...]
    weights: tuple[float, ...]


class SimilarPrompts:
    """Search a store's prompts and predict from what was found; the store is read once."""

    def __init__(
        self,
        store: PromptStore,
        embeddings: TokenEmbeddings,
        *,
        alpha: int = ALPHA,
        sharpness: float = 1.0,
    ) -> None:
        """Take the store's prompts as they are now.

        `sharpness` multiplies similarities in the softmax; the paper's is 1.

        Raises InputError for an empty store.
        """
        if len(store) == 0:
            raise InputError("there are no past prompts to predict from")
        self._embeddings = embeddings
        self._alpha, self._sharpness = alpha, sharpness
        self._summaries = np.asarray(store.summaries, np.float32)
        self._activations = np.asarray(store.activations)  # float16, as the store has them

    def nearest(self, query: Floats, alpha: int) -> tuple[Indices, Floats]:
        """Find up to α prompts near a summary [width], the nearest first, and their similarities."""
        similarity = soft_cosine(query[None], self._summaries)[0]
        best = np.argsort(-similarity, kind="stable")[:alpha]
        return best, similarity[best]

    def neighbours(self, tokens: Sequence[int]) -> Neighbours:
        """Find the α most similar past prompts and weigh them by the softmax of similarity."""
        found, similarity = self.nearest(summary(tokens, self._embeddings), self._alpha)
        raised = np.exp(self._sharpness * (similarity - similarity.max()).astype(np.float64))
        weights = raised / raised.sum()
        return Neighbours(
            tuple(found.tolist()), tuple(similarity.tolist()), tuple(weights.tolist())
        )

    def predict(self, tokens: Sequence[int]) -> Floats:
        """Score every expert for a prompt, [layers, experts]; each layer's scores sum to 1."""
        near = self.neighbours(tokens)
        rows = self._activations[list(near.prompts)].astype(np.float32)
        return np.asarray(np.tensordot(near.weights, rows, axes=1), np.float32)
