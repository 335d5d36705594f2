"""Links: how an expert's use follows from the experts chosen before, fitted per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from remoe_edge.profile.logistic import Floats, by_adam
from remoe_edge.profile.pack import Links
from remoe_edge.profile.samples import soon, used
from remoe_edge.routing.trace import Trace

HORIZON = 4
CONTEXTS = 5  # chosen now, lately (two averages), by the two layers before
FADES = (0.75, 0.97)  # of the two averages, as in the policy
SMALL = np.float32(1e-6)  # what an average may lose of it


def contexts(fold: Trace, layer: int) -> Floats:
    """Lay out what a layer's links start from: [token, CONTEXTS * n_experts]."""
    now = used(fold, layer).astype(np.float32) / fold.top_k
    parts = [now]
    for fade in FADES:
        average = np.empty_like(now)
        held = np.zeros(fold.n_experts, np.float32)
        for token in range(len(now)):
            held = held * np.float32(fade) + np.float32(1 - fade) * now[token]
            # A processor takes a hundred times as long over numbers next to nothing.
            held[held < SMALL] = 0
            average[token] = held
        parts.append(average)
    for before in (1, 2):
        source = layer - before
        parts.append(used(fold, source).astype(np.float32) / fold.top_k if source >= 0 else 0 * now)
    return np.concatenate(parts, axis=1)


def fit_links(
    folds: Sequence[Trace],
    scores: Sequence[Floats],
    bias: float,
    epochs: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Links]:
    """Fit each layer's links to what the score without links leaves unexplained.

    RETURNS the links fitted to all traces but the first, all but the second ..., and to all: scales
    `[layer, context]` and links `[layer, context, from, to]`.
    """
    n_layers, n_experts, n = folds[0].n_layers, folds[0].n_experts, len(folds)
    kept = [*([i for i in range(n) if i != left] for left in range(n)), list(range(n))]
    fits = [
        (
            np.zeros((n_layers, CONTEXTS), np.float32),
            np.zeros((n_layers, CONTEXTS, n_experts, n_experts), np.int8),
        )
        for _ in kept
    ]
    for layer in range(n_layers):
        progress(layer)
        inputs = [contexts(fold, layer) for fold in folds]
        offsets = [score[:, layer] + np.float32(bias) for score in scores]
        labels = [soon(used(fold, layer), HORIZON).astype(np.float32) for fold in folds]
        for (scales, links), mine in zip(fits, kept, strict=True):
            found = by_adam(
                np.concatenate([inputs[i] for i in mine]),
                np.concatenate([offsets[i] for i in mine]),
                np.concatenate([labels[i] for i in mine]),
                epochs, seed,
            ).reshape(CONTEXTS, n_experts, n_experts)  # fmt: skip
            scales[layer] = np.abs(found).max(axis=(1, 2)) / 127
            step = np.where(scales[layer] > 0, scales[layer], 1)[:, None, None]
            links[layer] = np.clip(np.rint(found / step), -127, 127).astype(np.int8)
    return fits
