#!/usr/bin/env python3
"""What the planner's memory costs more than the best combination of sizes, by kind of platform.

    python tools/remote_experiments/regret.py -o docs/results/remote-regret.json

For random problems of three functions, every combination of sizes is tried with the true T(y). The
planner answers in two ways: the paper's, with the exponential fitted to the same points, and the search
of sizes on the points themselves. Both answers are judged by the true T(y): what they cost more than
the best, and whether the time limits hold.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).resolve().parents[1]))
from remoe_edge.placement.latency_curve import (
    Curve,
    Exponential,
    Points,
    Steps,
    by_processors,
    curve,
)
from remoe_edge.placement.memory import MemoryProblem, lagrangian
from remoe_edge.placement.price import FunctionPrice
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.sizes import by_sizes
from remote_experiments.setting import ONE_CORE_MS, keep

_N = 3
_STEP = 512 << 20
_EXPERTS_BYTES = 300e6
GIB = 1 << 30


@dataclass(frozen=True)
class Judged:
    """Hold one answer's cost over the best, and whether the limits hold."""

    regret: float | None  # None: the limits are broken, or nothing was found
    kept: bool


def platforms() -> dict[str, Points]:
    """Reckon the true T(y) of each kind of platform, at sizes 512 MiB apart."""
    paper, steps = (load_prices(name).function for name in ("paper", "steps"))

    def reckoned(platform: FunctionPrice, parallel: float) -> Points:
        coarse = replace(platform, min_bytes=_STEP, step_bytes=_STEP)
        return by_processors("reckoned", coarse, ONE_CORE_MS, parallel=parallel)

    sizes = paper.sizes()[:: _STEP // paper.step_bytes]
    exact = [ONE_CORE_MS * (0.15 + 0.85 * np.exp(-0.7 * y / GIB)) for y in sizes]
    flat = replace(steps, vcpu_steps=((0, 2.0),))
    return {
        "exponential, as the paper assumes": Points("exact", tuple(sizes), tuple(exact)),
        "proportional, 90 % parallel": reckoned(paper, 0.9),
        "proportional, one thread": reckoned(replace(paper, max_vcpus=1), 0.9),
        "steps of 1, 2, 4, 8 processors": reckoned(steps, 0.9),
        "always two processors": reckoned(flat, 0.9),
    }


def problem(t: Curve, sizes: npt.NDArray[np.float64], rng: np.random.Generator) -> MemoryProblem:
    """Draw three functions of unequal load, beside a main host of 4 to 16 GiB."""
    rows = rng.lognormal(5, 0.7, _N)
    made = MemoryProblem(
        curve=t, wait_rows=rows, billed_rows=rows, held_ms=np.zeros(_N),
        ttft_rows=rows / 3, ttft_offset_ms=np.zeros(_N),
        tpot_rows=rng.uniform(1, 3, _N), tpot_offset_ms=np.zeros(_N),
        tpot_weight=rng.uniform(0.1, 1, _N),
        low=np.full(_N, sizes[np.searchsorted(sizes, _EXPERTS_BYTES)]),
        high=np.full(_N, sizes[-1]), ttft_room_ms=np.inf, tpot_room_ms=np.inf,
        main_rate=rng.uniform(4, 16), byte_rate=1 / GIB,
    )  # fmt: skip
    share = rng.uniform(0.02, 0.6)
    rooms = [
        float(time(made.high).sum() + share * (time(made.low).sum() - time(made.high).sum()))
        for time in (made.ttft_ms, made.tpot_ms)
    ]
    return replace(made, ttft_room_ms=rooms[0], tpot_room_ms=rooms[1])


def exhaustive(made: MemoryProblem, sizes: npt.NDArray[np.float64]) -> float:
    """Give the least cost of all combinations that keep the limits."""
    fits = sizes[sizes >= made.low[0]]
    y = np.broadcast_to(fits, (_N, len(fits)))
    cost, ttft, tpot = made.cost(y), made.ttft_ms(y), made.tpot_ms(y)
    best = np.inf
    for chosen in itertools.product(range(len(fits)), repeat=_N - 1):
        at = np.arange(_N - 1), list(chosen)
        last = cost[-1] + cost[at].sum()
        good = (ttft[-1] + ttft[at].sum() <= made.ttft_room_ms + 1e-9) & (
            tpot[-1] + tpot[at].sum() <= made.tpot_room_ms + 1e-9
        )
        best = min(best, float(np.where(good, last, np.inf).min()))
    return best


def judged(true: MemoryProblem, y: npt.NDArray[np.float64] | None, best: float) -> Judged:
    """Judge an answer by the true times."""
    if y is None or not true.keeps(y):
        return Judged(None, False)
    return Judged(float(true.cost(y).sum()) / best - 1, True)


def compare(name: str, known: Points, n: int, seed: int) -> dict[str, Any]:
    """Compare the ways on n problems of one platform."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray(known.sizes, np.float64)
    fitted, true_t = curve(known, stepwise=False), Steps(known.kind, known)
    assert isinstance(fitted, Exponential)
    ways: dict[str, list[Judged]] = {"exponential": [], "sizes": []}
    convex = 0
    for _ in range(n):
        true = problem(true_t, sizes, rng)
        best = exhaustive(true, sizes)
        smooth = lagrangian(replace(true, curve=fitted))
        convex += smooth is not None and smooth.convex
        rounded = None
        if smooth is not None:
            rounded = sizes[np.minimum(np.searchsorted(sizes, smooth.y - 1), len(sizes) - 1)]
        ways["exponential"].append(judged(true, rounded, best))
        by = by_sizes(true, sizes)
        ways["sizes"].append(judged(true, None if by is None else by.y, best))
    row: dict[str, Any] = {
        "platform": name,
        "problems": n,
        "fit_relative": fitted.fit.relative,
        "fit_worst": fitted.fit.worst,
        "convex": convex,
    }
    for way, found in ways.items():
        regrets = [each.regret for each in found if each.regret is not None]
        row[way] = {
            "limits_broken": sum(not each.kept for each in found),
            "mean_regret": float(np.mean(regrets)) if regrets else None,
            "worst_regret": max(regrets) if regrets else None,
        }
    return row


def main(arguments: list[str] | None = None) -> int:
    """Compare on every platform and print a line for each."""
    parser = argparse.ArgumentParser(prog="regret.py", description="Regret of memory sizes.")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for name, known in platforms().items():
        row = compare(name, known, options.problems, options.seed)
        rows.append(row)
        print(f"{name}: fit off by {row['fit_worst']:.0%} at most, convex {row['convex']}")
        for way in ("exponential", "sizes"):
            print(f"  {way}: {row[way]}", flush=True)
    keep({"seed": options.seed, "functions": _N, "rows": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
