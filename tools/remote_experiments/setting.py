"""What the experiments share: a model of Qwen3-30B-A3B's shape, a host's speed, and how to keep records.

Speeds rest on one measurement (docs/results/plan-twin.json: experts of 2.4 MB on two cores, 0.755 ms a
row of a token, 0.555 ms of a prompt) and on Amdahl's law with 0.9 of the work shared, which nobody has
measured. The main host has eight cores for experts and a GPU for the rest.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.cli.results import write_json
from remoe_edge.placement.latency_curve import Curve, Points, by_processors, curve
from remoe_edge.placement.price import PriceTable
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload
from typed_command import typed_command

PARALLEL = 0.9
ONE_CORE_MS = 0.755 / ((1 - PARALLEL) + PARALLEL / 2)  # plan-twin.json's two cores
MAIN_CORES = 8
STORAGE_BYTES_PER_S = 1.2e9  # plan-twin.json
_ROW_MS = ONE_CORE_MS * ((1 - PARALLEL) + PARALLEL / MAIN_CORES)

SPEED = Speed(
    decode_dense_ms=15.0,
    decode_row_ms=_ROW_MS,
    prefill_base_ms=50.0,
    prefill_dense_each_ms=0.3,
    prefill_row_ms=_ROW_MS * 0.555 / 0.755,
)
LINK = Link(round_trip_ms=0.6, bytes_per_s=125e6)  # 1 Gbit/s


def shape(n_layers: int = 48, n_experts: int = 128, top_k: int = 8) -> Shape:
    """Give the shape of Qwen3-30B-A3B in 4 bits, or one like it with other counts."""
    return Shape(n_layers, n_experts, top_k, 2_650_000, 1_600_000_000, 16_384, 1_300_000_000)


def request(slo: Slo, workload: Workload, made: Shape | None = None, link: Link = LINK) -> Request:
    """Join the setting with targets."""
    return Request(made or shape(), SPEED, link, slo, workload)


def points(table: PriceTable) -> Points:
    """Reckon T(y) of the table's functions, from processors."""
    return by_processors("two-core twin", table.function, ONE_CORE_MS, parallel=PARALLEL)


def measured(table: PriceTable, *, stepwise: bool | None = None) -> Curve:
    """Give T(y) as the planner takes it."""
    return curve(points(table), stepwise=stepwise)


def conditions() -> dict[str, Any]:
    """Say what ran, where, and how busy the machine was."""
    return {
        "command": typed_command(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def keep(record: dict[str, Any], path: Path | None) -> None:
    """Write a record with its conditions; figures to six digits."""
    if path is not None:
        write_json(_rounded({**conditions(), **record}), path)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return int(value) if isinstance(value, np.integer) else value


def cpu_s(act: Callable[[], Any]) -> tuple[float, Any]:
    """Run something and give the processor time it took, which other programs do not change."""
    start = time.process_time()
    found = act()
    return time.process_time() - start, found


def skewed(
    n_layers: int, n_experts: int, rng: np.random.Generator, power: float = 1.0
) -> npt.NDArray[np.float64]:
    """Make an activation matrix whose shares fall by rank, in another order for each layer."""
    weights = np.arange(1, n_experts + 1, dtype=float) ** -power
    weights /= weights.sum()
    return np.stack([rng.permutation(weights) for _ in range(n_layers)])
