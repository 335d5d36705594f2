"""Small placement problems that tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.placement import price
from remoe_edge.placement.latency_curve import Curve, by_processors, curve
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload

MIB = 1 << 20


def skewed(n_layers: int, n_experts: int, seed: int = 0, power: float = 1.2) -> Any:
    """Make an activation matrix in which few experts of each layer get most tokens."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, n_experts + 1, dtype=float) ** -power
    weights /= weights.sum()
    return np.stack([rng.permutation(weights) for _ in range(n_layers)])


def request(
    *, n_layers: int = 4, n_experts: int = 16, top_k: int = 2, tpot_ms: float | None = None,
    ttft_ms: float | None = None, n_prompt: int = 64, n_answer: int = 32, row_bytes: int = 8192,
) -> Request:  # fmt: skip
    """Make a request of a model of 4 × 16 experts of 32 MiB."""
    return Request(
        Shape(n_layers, n_experts, top_k, 32 * MIB, 256 * MIB, row_bytes, 64 * MIB),
        Speed(10, 1.0, 20, 0.5, 0.2),
        Link(0.6, 1e8),
        Slo(tpot_ms, ttft_ms),
        Workload(n_prompt, n_answer),
    )


def table(name: str = "paper", **function: Any) -> price.PriceTable:
    """Take a table that comes along, with some of the function's fields changed."""
    held = price.load(name).as_dict()
    held["function"].update(function)
    return price.from_dict(held)


def measured(prices: price.PriceTable, *, stepwise: bool | None = None) -> Curve:
    """Make T(y) of a machine that takes 1 ms for a row on a core."""
    return curve(by_processors("made up", prices.function, 1.0), stepwise=stepwise)


def shares_of(matrix: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> float:
    """Add up what a mask holds."""
    return float(matrix[mask].sum())
