"""Logistic regression: by Newton's method for a few weights, by Adam for many."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def by_newton(
    columns: Floats, labels: npt.NDArray[np.bool_], ridge: float = 1e-4
) -> tuple[Floats, float]:
    """Fit a logistic regression by Newton's method. RETURNS weights in the columns' units, bias."""
    mean, spread = columns.mean(0, dtype=np.float64), columns.std(0, dtype=np.float64)
    live = spread > 1e-6
    inputs = ((columns[:, live] - mean[live]) / spread[live]).astype(np.float64)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    penalty = np.full(inputs.shape[1], ridge * len(inputs))
    penalty[-1] = 0
    weights = np.zeros(inputs.shape[1])
    share = min(max(float(labels.mean()), 1e-6), 1 - 1e-6)
    weights[-1] = np.log(share / (1 - share))
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        slope = inputs.T @ (chance - labels) + penalty * weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    fitted = np.zeros(columns.shape[1])
    fitted[live] = weights[:-1] / spread[live]
    return fitted.astype(np.float32), float(weights[-1] - fitted @ mean)


def by_adam(
    inputs: Floats,
    offset: Floats,
    labels: Floats,
    epochs: int,
    seed: int,
    *,
    batch: int = 500,
    rate: float = 0.02,
    decay: float = 1e-6,
) -> Floats:
    """Fit `labels ~ logistic(inputs @ W + offset)`, W pulled to 0, by Adam over batches."""
    rng = np.random.default_rng(seed)
    # Enough steps for a short trace too.
    count, batch = len(inputs), max(1, min(batch, len(inputs) // 12))
    weights = np.zeros((inputs.shape[1], labels.shape[1]), np.float32)
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    steps, done = epochs * (count // batch), 0
    for _ in range(epochs):
        order = rng.permutation(count)
        for at in range(0, count - batch + 1, batch):
            rows = order[at : at + batch]
            some = inputs[rows]
            error = 1 / (1 + np.exp(-(some @ weights + offset[rows]))) - labels[rows]
            slope = some.T @ error / np.float32(error.size) + np.float32(2 * decay) * weights
            done += 1
            first += np.float32(0.1) * (slope - first)
            second += np.float32(0.001) * (slope * slope - second)
            size = np.float32(rate * (1 - 0.9 * done / steps) / (1 - 0.9**done))
            root = np.sqrt(second / np.float32(1 - 0.999**done)) + np.float32(1e-8)
            weights -= size * first / root
    return weights
