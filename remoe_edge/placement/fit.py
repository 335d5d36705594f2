"""Fit latency against memory by T(y) = θ1·exp(−θ2·y) + θ3, the curve of Remoe (arXiv 2512.18674)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Decays over the whole range of y that are tried: from nearly a line to nearly a step.
_LEAST, _MOST, _TRIED = 1e-2, 1e2, 200


@dataclass(frozen=True)
class Fit:
    """Hold the three parameters and the errors over the points that they were fitted to."""

    theta1: float
    theta2: float
    theta3: float
    rmse: float
    relative: float  # root of the mean squared relative error
    worst: float  # largest relative error

    def __call__(self, y: float) -> float:
        """Evaluate T(y)."""
        return self.theta1 * math.exp(-self.theta2 * y) + self.theta3

    def gain(self, y: float) -> float:
        """Evaluate −dT/dy: what one more unit of memory saves."""
        return self.theta1 * self.theta2 * math.exp(-self.theta2 * y)


def fit_latency(y: Sequence[float], t: Sequence[float]) -> Fit:
    """Fit T to points, in the least squares of T, with θ1, θ3 ≥ 0 and θ2 > 0.

    θ1 and θ3 follow linearly from θ2, which is found by a scan and a golden section. Raises
    ValueError with fewer than three points, or none that differ in y.
    """
    ys, ts = np.asarray(y, np.float64), np.asarray(t, np.float64)
    span = float(ys.max() - ys.min()) if len(ys) else 0.0
    if len(ys) < 3 or len(ys) != len(ts) or span <= 0:
        raise ValueError("three points of different memory are needed")
    start = float(ys.min())
    x = (ys - start) / span  # so that exp() neither overflows nor vanishes

    def solved(log_decay: float) -> tuple[float, float, float]:
        shape = np.exp(-math.exp(log_decay) * x)
        a, b = _two_weights(shape, ts)
        return float(np.sum((a * shape + b - ts) ** 2)), a, b

    # θ1 is the value at y = 0, which must stay a number when all points lie far from there.
    steepest = min(_MOST, 600 * span / start) if start > 0 else _MOST
    grid = np.linspace(math.log(min(_LEAST, steepest)), math.log(steepest), _TRIED)
    best = int(np.argmin([solved(float(at))[0] for at in grid]))
    low, high = float(grid[max(0, best - 1)]), float(grid[min(_TRIED - 1, best + 1)])
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if solved(left)[0] <= solved(right)[0]:
            high = right
        else:
            low = left
    at = (low + high) / 2
    _, a, b = solved(at)
    theta2 = math.exp(at) / span
    residual = a * np.exp(-math.exp(at) * x) + b - ts
    share = np.abs(residual) / np.maximum(np.abs(ts), 1e-12)
    return Fit(
        theta1=a * math.exp(theta2 * start),
        theta2=theta2,
        theta3=b,
        rmse=float(np.sqrt(np.mean(residual**2))),
        relative=float(np.sqrt(np.mean(share**2))),
        worst=float(share.max()),
    )


def _two_weights(shape: Floats, t: Floats) -> tuple[float, float]:
    """Minimise |a·shape + b − t|² over a, b ≥ 0."""
    centred = shape - shape.mean()
    power = float(centred @ centred)
    a = float(centred @ (t - t.mean())) / power if power > 0 else 0.0
    b = float(t.mean() - a * shape.mean())
    if a >= 0 and b >= 0:
        return a, b
    # The optimum lies on an edge: without the curve, or without the constant.
    flat = max(0.0, float(t.mean()))
    steep = max(0.0, float(shape @ t) / float(shape @ shape))
    if np.sum((flat - t) ** 2) <= np.sum((steep * shape - t) ** 2):
        return 0.0, flat
    return steep, 0.0
