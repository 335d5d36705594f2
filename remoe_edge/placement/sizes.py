"""Memory for each function where T is no curve: choose among the sizes that can be had, by price.

The same problem and the same Lagrangian as in `memory`, but each function's minimum is looked up in a
table of all its sizes, so that T may have steps. The relaxation finds answers on the convex hull; moves
of single functions then use the room that it leaves. `bound` tells how far from the optimum it can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remoe_edge.placement.activation import Floats
from remoe_edge.placement.dual import least_prices
from remoe_edge.placement.memory import MemoryAnswer, MemoryProblem

_SWEEPS = 8

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class _Table:
    """Hold cost and times of every function at every size, infinite where it does not fit."""

    y: Floats
    cost: Floats
    ttft: Floats
    tpot: Floats

    def at(self, table: Floats, chosen: Indices) -> Floats:
        return np.asarray(np.take_along_axis(table, chosen[:, None], axis=1)[:, 0])


@dataclass(frozen=True)
class _At:
    chosen: Indices
    ttft_excess: float
    tpot_excess: float


def by_sizes(
    problem: MemoryProblem, sizes: npt.ArrayLike, start: Floats | None = None
) -> MemoryAnswer | None:
    """Choose a size for each function; None where the fastest break a limit.

    `start`: sizes to round up and improve instead of searching prices, as `lagrangian` gives them.
    """
    table = _tabulate(problem, np.asarray(sizes, np.float64))
    fastest = np.asarray(
        np.argmin(np.where(np.isinf(table.cost), np.inf, table.ttft + table.tpot), 1)
    )
    if not np.isfinite(table.cost).any(1).all() or not _keeps(problem, table, fastest):
        return None

    def relaxed(ttft_price: float, tpot_price: float) -> _At:
        priced = table.cost + ttft_price * table.ttft + tpot_price * table.tpot
        return _excess(problem, table, np.argmin(priced, axis=1))

    prices, bound = (0.0, 0.0), 0.0
    if start is not None:
        chosen = np.asarray(np.argmax(table.y >= start[:, None] - 0.5, axis=1))
        chosen = np.where(table.y[:, -1] < start - 0.5, table.y.shape[1] - 1, chosen)
        if not _keeps(problem, table, chosen) or np.isinf(table.at(table.cost, chosen)).any():
            return by_sizes(problem, sizes)
    else:
        found = least_prices(relaxed, problem.time_scale)
        chosen = fastest if found is None else found.answer.chosen
        if found is not None:
            prices = (found.ttft_price, found.tpot_price)
            bound = float(table.at(table.cost, chosen).sum())
            for price, excess in zip(
                prices, (found.answer.ttft_excess, found.answer.tpot_excess), strict=True
            ):
                bound += price * excess if price else 0.0
    chosen = _improved(problem, table, chosen)
    cost = float(table.at(table.cost, chosen).sum())
    return MemoryAnswer(table.at(table.y, chosen), cost, bound, False, *prices)


def _tabulate(problem: MemoryProblem, sizes: Floats) -> _Table:
    y = np.broadcast_to(sizes, (len(problem.low), len(sizes)))
    fits = (y >= problem.low[:, None] - 0.5) & (y <= problem.high[:, None] + 0.5)
    return _Table(
        y, np.where(fits, problem.cost(y), np.inf), problem.ttft_ms(y), problem.tpot_ms(y)
    )


def _excess(problem: MemoryProblem, table: _Table, chosen: Indices) -> _At:
    times = table.at(table.ttft, chosen), table.at(table.tpot, chosen)
    return _At(chosen, *problem.excess_ms(*times))


def _keeps(problem: MemoryProblem, table: _Table, chosen: Indices) -> bool:
    at = _excess(problem, table, chosen)
    return at.ttft_excess <= 0 and at.tpot_excess <= 0


def _improved(problem: MemoryProblem, table: _Table, chosen: Indices) -> Indices:
    """Move single functions to cheaper sizes while the limits leave room, the best saving first."""
    chosen = chosen.copy()
    for _ in range(_SWEEPS):
        at = _excess(problem, table, chosen)
        rooms = (-at.ttft_excess, -at.tpot_excess)
        more_ttft = table.ttft - table.at(table.ttft, chosen)[:, None]
        more_tpot = table.tpot - table.at(table.tpot, chosen)[:, None]
        saved = table.at(table.cost, chosen)[:, None] - table.cost
        fits = (more_ttft <= rooms[0]) & (more_tpot <= rooms[1])
        saved = np.where(fits, saved, -np.inf)
        best = np.argmax(saved, axis=1)
        gains = table.at(saved, best)
        left = list(rooms)
        moved = False
        for f in np.argsort(-gains, kind="stable"):
            if not gains[f] > 1e-12 * abs(table.cost[f, chosen[f]]):
                break
            size = best[f]
            if more_ttft[f, size] <= left[0] and more_tpot[f, size] <= left[1]:
                left[0] -= more_ttft[f, size]
                left[1] -= more_tpot[f, size]
                chosen[f] = size
                moved = True
        if not moved:
            break
    return chosen
