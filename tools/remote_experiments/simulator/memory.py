"""Which experts the main host has: those that a placement names, or what the engine's own cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge import _core


class Memory(Protocol):
    """Say what is missing of an event; asking counts as use."""

    def missing(self, layer: int, experts: Sequence[int], step: int, n_tokens: int) -> list[int]:
        """Give the experts of one layer's step that are not there."""
        ...


class Placed:
    """Experts that a placement keeps local, and no others."""

    def __init__(self, local: npt.NDArray[np.bool_]) -> None:
        self._local: list[list[bool]] = local.tolist()

    def missing(self, layer: int, experts: Sequence[int], step: int, n_tokens: int) -> list[int]:
        """See `Memory`."""
        here = self._local[layer]
        return [expert for expert in experts if not here[expert]]


class Cached:
    """Slots under an eviction policy: the core's own cache, as the engine and the replay use it."""

    def __init__(self, n_layers: int, n_experts: int, n_slots: int, policy: str) -> None:
        self._cache = _core.Cache(n_layers, n_experts, n_slots, policy)
        self._n_slots = n_slots

    def missing(self, layer: int, experts: Sequence[int], step: int, n_tokens: int) -> list[int]:
        """See `Memory`. More experts than slots come in waves, as in the engine."""
        found: list[int] = []
        for first in range(0, len(experts), self._n_slots):
            wave = list(experts[first : first + self._n_slots])
            placed = self._cache.begin(
                layer, wave, step=step, decode=n_tokens == 1, n_tokens=n_tokens,
                continued=first > 0,
            )  # fmt: skip
            self._cache.end()
            found += [expert for expert, _, hit in placed if not hit]
        return found

    def counts(self) -> dict[str, int]:
        """Give the cache's own counts."""
        return self._cache.counts()
