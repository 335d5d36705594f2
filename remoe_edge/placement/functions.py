"""Functions: which remote experts of a layer share one, and what it is expected to be asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from remoe_edge.errors import InputError
from remoe_edge.placement.activation import Floats
from remoe_edge.placement.request import Shape, Workload
from remoe_edge.placement.utility import Mask


@dataclass(frozen=True)
class Group:
    """Hold the remote experts of one layer that one function serves."""

    layer: int
    experts: tuple[int, ...]

    def bytes(self, shape: Shape, overhead_bytes: int) -> int:
        """Add up the memory that it cannot do without."""
        return len(self.experts) * shape.expert_bytes + overhead_bytes


@dataclass(frozen=True)
class Load:
    """Hold what a request asks of one group.

    prompt_rows: rows of each expert while the prompt is computed. chance: that a token of the answer
    calls the group at all. rows: of such a token, on the average over all tokens.
    """

    prompt_rows: tuple[float, ...]
    chance: float
    rows: float


def groups(remote: Mask, rated: Floats, experts_per_function: int | None = None) -> list[Group]:
    """Part every layer's remote experts into functions of at most so many; one a layer without it.

    The most useful are dealt out first, back and forth, so that a layer's functions are alike.
    """
    if experts_per_function is not None and experts_per_function < 1:
        raise InputError(f"{experts_per_function} experts in a function")
    found = []
    for layer, mask in enumerate(remote):
        experts = np.flatnonzero(mask)
        if not len(experts):
            continue
        n = 1 if experts_per_function is None else -(-len(experts) // experts_per_function)
        order = experts[np.argsort(-rated[layer, experts], kind="stable")]
        dealt = [int(i) for i in np.resize([*range(n), *range(n - 1, -1, -1)], len(order))]
        hands: list[list[int]] = [[] for _ in range(n)]
        for expert, hand in zip(order.tolist(), dealt, strict=True):
            hands[hand].append(expert)
        found += [Group(layer, tuple(sorted(hand))) for hand in hands]
    return found


def load(group: Group, shares: Floats, shape: Shape, workload: Workload) -> Load:
    """Expect a request's calls of a group from predicted shares, each choice by itself."""
    mine = shares[group.layer, list(group.experts)]
    n, k = workload.n_prompt, shape.top_k
    prompt = np.minimum(n, n * k * mine)
    rows = float(np.minimum(1.0, k * mine).sum())
    return Load(tuple(prompt.tolist()), float(1 - (1 - min(1.0, mine.sum())) ** k), rows)
