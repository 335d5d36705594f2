"""Replicas of functions, z: add the one that saves the most time until the targets hold.

A function's prompt rows are shared out among its replicas by LPT (`schedule`), and so is a token's
choice of several experts. A layer waits for its slowest function: a replica of another saves nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from remoe_edge.placement.request import Slo
from remoe_edge.placement.times import Timing


def add_replicas(
    timing: Timing, row_ms: Sequence[float], slo: Slo, most: int, start: Sequence[int] | None = None
) -> list[int] | None:
    """Give each group its replicas; None where `most` of all still break a target.

    Where one replica of a layer's slowest function does not help because two are equally slow, the
    next step takes the other, so that ties do not end the search.
    """
    search = _Search(timing, row_ms, slo, most, start)
    over = search.excess()
    if over == (0.0, 0.0):
        return search.z
    # A layer's saving changes only when the layer does, but for the targets still broken.
    queue, broken = search.queue(), [each > 0 for each in over]
    while queue:
        _, layer, i = heapq.heappop(queue)
        search.add(layer, i)
        over = search.excess()
        if over == (0.0, 0.0):
            return search.z
        if [each > 0 for each in over] != broken:
            queue, broken = search.queue(), [each > 0 for each in over]
        elif (again := search.entry(layer)) is not None:
            heapq.heappush(queue, again)
    return None


class _Search:
    """Hold replicas so far, z, and the times of layers with them."""

    def __init__(
        self, timing: Timing, row_ms: Sequence[float], slo: Slo, most: int, start: Sequence[int] | None,
    ) -> None:  # fmt: skip
        self._timing, self._row_ms, self._slo, self._most = timing, row_ms, slo, most
        self.z = list(start) if start is not None else [1] * len(timing.groups)
        self._prompt_ms, self._token_ms = [], []
        for layer in range(len(timing.layers)):
            prompt_ms, token_ms = self._layer_ms(layer)
            self._prompt_ms.append(prompt_ms)
            self._token_ms.append(token_ms)

    def _layer_ms(self, layer: int) -> tuple[float, float]:
        return (
            self._timing.prompt_layer_ms(layer, self._row_ms, self.z),
            self._timing.token_layer_ms(layer, self._row_ms, self.z),
        )

    def excess(self) -> tuple[float, float]:
        """Give the ms that TTFT and TPOT are over their targets, 0 where they keep them."""
        ttft = self._timing.fixed_ttft_ms + sum(self._prompt_ms)
        tpot = self._timing.request.speed.decode_dense_ms + sum(self._token_ms)
        slo = self._slo
        return (
            0.0 if slo.ttft_ms is None else max(0.0, ttft - slo.ttft_ms * (1 + 1e-9)),
            0.0 if slo.tpot_ms is None else max(0.0, tpot - slo.tpot_ms * (1 + 1e-9)),
        )

    def add(self, layer: int, i: int) -> None:
        """Give a group of this layer one more replica."""
        self.z[i] += 1
        self._prompt_ms[layer], self._token_ms[layer] = self._layer_ms(layer)

    def queue(self) -> list[tuple[float, int, int]]:
        """Make a heap of all layers' entries."""
        found = [self.entry(layer) for layer in range(len(self._timing.layers))]
        queue = [each for each in found if each is not None]
        heapq.heapify(queue)
        return queue

    def entry(self, layer: int) -> tuple[float, int, int] | None:
        """Give the layer's next replica, the one that saves most first; None where none is left."""
        i = self._slowest(layer)
        return None if i is None else (-self._saving(layer, i), layer, i)

    def _slowest(self, layer: int) -> int | None:
        """Find the group that a layer waits for, among those that may still grow."""
        timing, row_ms, z = self._timing, self._row_ms, self.z
        over = self.excess()
        grown = [i for i in timing.by_layer[layer] if z[i] < min(self._most, _useful(timing, i))]

        def wait(i: int) -> float:
            prompt_ms = timing.prompt_wait_ms(i, z[i]) + timing.makespan(i, z[i]) * row_ms[i]
            token_ms = timing.token_wait_ms(i) + timing.token_rows(i, z[i]) * row_ms[i]
            return (prompt_ms if over[0] > 0 else 0.0) + (token_ms if over[1] > 0 else 0.0)

        return max(grown, key=wait, default=None)

    def _saving(self, layer: int, i: int) -> float:
        """Say what one more replica of a group saves, in shares of what is over the targets."""
        self.z[i] += 1
        prompt_ms, token_ms = self._layer_ms(layer)
        self.z[i] -= 1
        saved_ms = (self._prompt_ms[layer] - prompt_ms, self._token_ms[layer] - token_ms)
        return sum(
            min(1.0, saved / over)
            for saved, over in zip(saved_ms, self.excess(), strict=True)
            if over > 0
        )


def _useful(timing: Timing, i: int) -> int:
    """Bound the replicas that have an expert to compute."""
    return len(timing.loads[i].prompt_rows)
