"""A tree of prompts in which the nearest are found without looking at all of them.

A node of more than β prompts is split around medoids, members that stand for the prompts nearest to
them, into as many forks as β asks for. A search walks to the nearest medoid's fork until a leaf, and
takes what it still lacks from the leaf's siblings, the nearest first. After Remoe's multi-fork
clustering tree (arXiv 2512.18674); β = 150 and α = 15 are its values, the number of forks is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from remoe_edge.predict.embeddings import Floats, TokenEmbeddings
from remoe_edge.predict.predictor import ALPHA, SimilarPrompts
from remoe_edge.predict.similarity import soft_cosine
from remoe_edge.predict.store import PromptStore

Indices = npt.NDArray[np.int64]

BETA = 150
MOST_FORKS = 8
_ROUNDS = 20


@dataclass
class Node:
    """Hold a part of the prompts: all of its members, and its forks with their medoids."""

    members: Indices
    medoids: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    children: list[Node] = field(default_factory=list)


class PromptTree:
    """Search summaries [n, width] by soft cosine similarity."""

    def __init__(self, summaries: Floats, beta: int = BETA, seed: int = 0) -> None:
        self._summaries = summaries
        self._beta = beta
        self._rng = np.random.default_rng(seed)
        self.root = self._grow(np.arange(len(summaries), dtype=np.int64))

    def _grow(self, members: Indices) -> Node:
        node = Node(members)
        if len(members) <= self._beta:
            return node
        forks = min(MOST_FORKS, max(2, math.ceil(len(members) / self._beta)))
        medoids, nearest = k_medoids(self._summaries[members], forks, self._rng)
        parts = [members[nearest == fork] for fork in range(len(medoids))]
        if max(len(part) for part in parts) == len(members):
            return node  # prompts that nothing tells apart
        node.medoids = members[medoids]
        node.children = [self._grow(part) for part in parts]
        return node

    def nearest(self, query: Floats, alpha: int) -> tuple[Indices, Floats]:
        """Find up to α prompts near a summary [width], the nearest first, and their similarities.

        The α best of the leaf that the query falls into; the whole tree may hold nearer ones.
        """
        path = [self.root]
        while path[-1].children:
            order = self._order(path[-1], query)
            path.append(path[-1].children[order[0]])
        found = path[-1].members
        for node in reversed(path[:-1]):
            if len(found) >= alpha:
                break
            for fork in self._order(node, query)[1:]:
                if len(found) >= alpha:
                    break
                found = np.concatenate([found, node.children[fork].members])
        likeness = soft_cosine(query[None], self._summaries[found])[0]
        best = np.argsort(-likeness, kind="stable")[:alpha]
        return found[best], likeness[best]

    def _order(self, node: Node, query: Floats) -> Indices:
        likeness = soft_cosine(query[None], self._summaries[node.medoids])[0]
        return np.argsort(-likeness, kind="stable")

    def leaves(self) -> list[Node]:
        """List the leaves."""
        found, waiting = [], [self.root]
        while waiting:
            node = waiting.pop()
            if node.children:
                waiting += node.children
            else:
                found.append(node)
        return found


def k_medoids(summaries: Floats, k: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Choose up to k medoids and give every row the nearest: (medoids, fork of each row).

    Starts by roulette wheel (a row is drawn the likelier, the farther it lies from those chosen),
    then moves each medoid to the row of its fork that is nearest to all of them, until none moves.
    Fewer than k where rows coincide.
    """
    likeness = soft_cosine(summaries, summaries)
    medoids = [int(rng.integers(len(summaries)))]
    while len(medoids) < k:
        distance = np.maximum(0.0, 1 - likeness[medoids].max(0).astype(np.float64))
        distance[medoids] = 0
        if distance.max() < 1e-6:
            break
        medoids.append(int(rng.choice(len(summaries), p=distance / distance.sum())))
    chosen = np.asarray(medoids, np.int64)
    nearest = likeness[chosen].argmax(0)
    for _ in range(_ROUNDS):
        moved = chosen.copy()
        for fork in range(len(chosen)):
            rows = np.flatnonzero(nearest == fork)
            if len(rows):
                moved[fork] = rows[likeness[np.ix_(rows, rows)].sum(1).argmax()]
        if (moved == chosen).all():
            break
        chosen = moved
        nearest = likeness[chosen].argmax(0)
    return chosen, np.asarray(nearest, np.int64)


class TreePrompts(SimilarPrompts):
    """Predict as `SimilarPrompts` does, from what a tree finds instead of a search of everything."""

    def __init__(
        self,
        store: PromptStore,
        embeddings: TokenEmbeddings,
        *,
        alpha: int = ALPHA,
        beta: int = BETA,
        sharpness: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Build the tree of the store's prompts as they are now."""
        super().__init__(store, embeddings, alpha=alpha, sharpness=sharpness)
        self.tree = PromptTree(self._summaries, beta, seed)

    def nearest(self, query: Floats, alpha: int) -> tuple[Indices, Floats]:
        """Ask the tree."""
        return self.tree.nearest(query, alpha)
