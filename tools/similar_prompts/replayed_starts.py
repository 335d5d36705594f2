"""What a prediction is worth to a cache: which experts to load, and a replay that counts misses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remoe_edge.native import _core
from remoe_edge.predict.embeddings import Floats

Routed = npt.NDArray[np.integer]  # [layer, token, k]

_LIKELY = 0.5


def to_load(scores: Floats, n_slots: int, n_tokens: int, top_k: int) -> list[tuple[int, int]]:
    """List the (layer, expert) pairs to load before a prompt of n tokens, what is used first first.

    A prompt's misses in one layer push out what was loaded for later ones before it is used, so
    layers are completed in order: all experts of the first that the prompt more likely uses than
    not, then those of the next, while slots last. `scores` [layers, experts] sum to 1 per layer.
    """
    used = 1 - (1 - np.minimum(1.0, top_k * scores.astype(np.float64))) ** n_tokens
    unlikely = used < _LIKELY
    layer = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
    # Likely ones by layer, then the others; the likeliest first within both.
    order = np.lexsort((-used.ravel(), np.where(unlikely, len(scores), layer).ravel()))[:n_slots]
    layers, experts = np.unravel_index(order, scores.shape)
    return list(zip(layers.tolist(), experts.tolist(), strict=True))


@dataclass(frozen=True)
class FirstTokens:
    """Hold misses: of the prompt, of each token after it, and what was loaded beforehand."""

    prompt: int
    decode: tuple[int, ...]
    loaded: int


def replay_start(
    prompt: Routed,
    answer: Routed,
    n_experts: int,
    n_slots: int,
    *,
    policy: str = "lru",
    load: Floats | None = None,
    keep: Floats | None = None,
    expect: Floats | None = None,
) -> FirstTokens:
    """Run a prompt as one step and the tokens after it one by one through the engine's cache.

    load: scores to fill the cache by before the prompt. keep: scores by which the least likely
    expert leaves while the prompt runs, instead of the longest unused one (under LRU). expect: what
    the policy adds to its own scores. A layer's experts that do not all fit come in waves, residents
    first, as in the engine.
    """
    cache = _core.Cache(len(prompt), n_experts, n_slots, policy)
    cache.expect(expect)
    n_tokens, top_k = prompt.shape[1:]
    loaded = to_load(load, n_slots, n_tokens, top_k) if load is not None else []
    for layer, expert in reversed(loaded):  # the first used is the last to leave
        cache.run(layer, [expert])
    missed = 0
    for layer, rows in enumerate(prompt):
        wanted = np.unique(rows).tolist()
        # Those that are there first, also where all fit: they are then the longest unused.
        resident = {expert for at, expert in cache.residents() if at == layer}
        wanted.sort(key=lambda expert: expert not in resident)
        missed += cache.run(
            layer, wanted, step=1, decode=False, n_tokens=n_tokens, ids=rows.astype(np.uint16)
        )
        if keep is not None:
            _order_by(cache, keep)
    decode = tuple(
        sum(
            cache.run(layer, answer[layer, token].tolist(), step=2 + token)
            for layer in range(len(answer))
        )
        for token in range(answer.shape[1])
    )
    return FirstTokens(missed, decode, len(loaded))


def _order_by(cache: _core.Cache, scores: Floats) -> None:
    """Touch the residents, the least likely first: LRU then evicts in this order."""
    for layer, expert in sorted(cache.residents(), key=lambda at: float(scores[at])):
        cache.run(layer, [expert], step=1)
