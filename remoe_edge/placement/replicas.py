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
    z = list(start) if start is not None else [1] * len(timing.groups)
    layers = range(len(timing.layers))
    prompt = [timing.prompt_layer_ms(i, row_ms, z) for i in layers]
    token = [timing.token_layer_ms(i, row_ms, z) for i in layers]

    def excess() -> tuple[float, float]:
        ttft = timing.fixed_ttft_ms + sum(prompt)
        tpot = timing.request.speed.decode_dense_ms + sum(token)
        return (
            0.0 if slo.ttft_ms is None else max(0.0, ttft - slo.ttft_ms * (1 + 1e-9)),
            0.0 if slo.tpot_ms is None else max(0.0, tpot - slo.tpot_ms * (1 + 1e-9)),
        )

    def saving(layer: int, i: int) -> float:
        """Say what one more replica of a group saves, in shares of what is over the targets."""
        z[i] += 1
        ttft_saved = prompt[layer] - timing.prompt_layer_ms(layer, row_ms, z)
        tpot_saved = token[layer] - timing.token_layer_ms(layer, row_ms, z)
        z[i] -= 1
        over = excess()
        return sum(
            min(1.0, saved / e)
            for saved, e in zip((ttft_saved, tpot_saved), over, strict=True)
            if e > 0
        )

    def slowest(layer: int) -> int | None:
        """Find the group that a layer waits for, among those that may still grow."""
        over = excess()
        grown = [i for i in timing.by_layer[layer] if z[i] < min(most, _useful(timing, i))]

        def wait(i: int) -> float:
            prompt_ms = timing.prompt_wait_ms(i, z[i]) + timing.makespan(i, z[i]) * row_ms[i]
            token_ms = timing.token_wait_ms(i) + timing.token_rows(i, z[i]) * row_ms[i]
            return (prompt_ms if over[0] > 0 else 0.0) + (token_ms if over[1] > 0 else 0.0)

        return max(grown, key=wait, default=None)

    def entry(layer: int) -> tuple[float, int, int] | None:
        i = slowest(layer)
        return None if i is None else (-saving(layer, i), layer, i)

    if excess() == (0.0, 0.0):
        return z
    # A layer's saving changes only when the layer does, but for the targets still broken.
    queue = [each for each in map(entry, layers) if each is not None]
    heapq.heapify(queue)
    broken = [each > 0 for each in excess()]
    while queue:
        _, layer, i = heapq.heappop(queue)
        z[i] += 1
        prompt[layer] = timing.prompt_layer_ms(layer, row_ms, z)
        token[layer] = timing.token_layer_ms(layer, row_ms, z)
        over = excess()
        if over == (0.0, 0.0):
            return z
        if [each > 0 for each in over] != broken:
            broken = [each > 0 for each in over]
            queue = [each for each in map(entry, layers) if each is not None]
            heapq.heapify(queue)
        elif (again := entry(layer)) is not None:
            heapq.heappush(queue, again)
    return None


def _useful(timing: Timing, i: int) -> int:
    """Bound the replicas that have an expert to compute."""
    return len(timing.loads[i].prompt_rows)
