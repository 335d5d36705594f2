"""Memory for each function by Lagrangian duality (Remoe's memory problem, Theorem 2).

    min Σ_f (H·h_f + c·w_f·y_f)·T(y_f) + c·s_f·y_f    with limits on Σ time, low ≤ y ≤ high

y_f: bytes of function f. T: time of a row. H: what the main host costs while it waits, per ms; h_f:
the rows that it waits for. c: price of a byte for a ms; w_f: the rows billed, or s_f: the ms that the
function is held, where lifetimes are billed. With T(y) = θ1·exp(−θ2·y) + θ3 the sum is convex where

    y ≥ 2/θ2 − H·h_f/(c·w_f)

and a price λ on time only adds to H. There, strong duality holds (Slater) and the answer is the
optimum. Elsewhere `convex` is False, and `sizes` searches the sizes that can be had one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from remoe_edge.placement.activation import Floats
from remoe_edge.placement.dual import least_prices
from remoe_edge.placement.latency_curve import GIB, Curve, Exponential

ROUNDING_MS = 1e-9  # sums of many functions' times differ by less for their order alone
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class MemoryProblem:
    """Hold the arrays of the problem, one value for each function, and the limits.

    A limit counts what a function's time adds to its layer: max(0, offset + rows·T(y)), the offset
    being round trips and transfers less the local computing beside them.
    """

    curve: Curve
    wait_rows: Floats  # h
    billed_rows: Floats  # w
    held_ms: Floats  # s
    ttft_rows: Floats
    ttft_offset_ms: Floats
    tpot_rows: Floats
    tpot_offset_ms: Floats
    tpot_weight: Floats  # the chance of being called
    low: Floats
    high: Floats
    ttft_room_ms: float  # what is left of the targets; infinite without one
    tpot_room_ms: float
    main_rate: float  # H
    byte_rate: float  # c

    def cost(self, y: Floats) -> Floats:
        """Price each function at sizes y [functions] or [functions, sizes]."""
        t = self.curve(y)
        w, h, s = (_like(each, y) for each in (self.billed_rows, self.wait_rows, self.held_ms))
        return np.asarray(
            (self.main_rate * h + self.byte_rate * w * y) * t + self.byte_rate * s * y
        )

    def ttft_ms(self, y: Floats) -> Floats:
        """Give what each function adds to the time to the first token."""
        rows, offset = _like(self.ttft_rows, y), _like(self.ttft_offset_ms, y)
        return np.where(rows > 0, np.maximum(0.0, offset + rows * self.curve(y)), 0.0)

    def tpot_ms(self, y: Floats) -> Floats:
        """Give what each function adds to the time of a token."""
        rows, offset = _like(self.tpot_rows, y), _like(self.tpot_offset_ms, y)
        beyond = np.maximum(0.0, offset + rows * self.curve(y))
        return np.where(rows > 0, _like(self.tpot_weight, y) * beyond, 0.0)

    def keeps(self, y: Floats) -> bool:
        """Say whether the limits hold."""
        ttft, tpot = self.excess_ms(self.ttft_ms(y), self.tpot_ms(y))
        return ttft <= 0 and tpot <= 0

    def excess_ms(self, ttft_ms: Floats, tpot_ms: Floats) -> tuple[float, float]:
        """Say by how much times of single functions break the limits; 0 or less keeps them."""
        return (
            float(ttft_ms.sum()) - self.ttft_room_ms - ROUNDING_MS,
            float(tpot_ms.sum()) - self.tpot_room_ms - ROUNDING_MS,
        )

    @property
    def time_scale(self) -> float:
        """Give about what a millisecond costs, to start a search of prices from."""
        return max(self.main_rate, self.byte_rate * float(np.mean(self.high)), 1e-300)


@dataclass(frozen=True)
class MemoryAnswer:
    """Hold the sizes found, what they cost, and a bound: no answer costs less."""

    y: Floats
    cost: float
    bound: float
    convex: bool
    ttft_price: float
    tpot_price: float


@dataclass(frozen=True)
class _At:
    y: Floats
    ttft_excess: float
    tpot_excess: float


def convex_from(problem: MemoryProblem) -> Floats:
    """Give the size in bytes from which each function's cost is convex; 0 where it always is."""
    if not isinstance(problem.curve, Exponential):
        return np.full(len(problem.low), np.inf)
    fit = problem.curve.fit
    if fit.theta1 <= 0:
        return np.zeros(len(problem.low))
    # w = 0: nothing is billed by time, and only convex terms are left.
    billed = problem.byte_rate * problem.billed_rows
    ratio = np.divide(
        problem.main_rate * problem.wait_rows, billed,
        out=np.full(len(billed), np.inf), where=billed > 0,
    )  # fmt: skip
    return np.asarray(np.maximum(0.0, 2 / fit.theta2 * GIB - ratio))


def lagrangian(problem: MemoryProblem) -> MemoryAnswer | None:
    """Solve for sizes that need not be whole steps; None where the fastest sizes break a limit.

    `convex` says whether all of low … high lies where the cost is convex.
    """
    if not problem.keeps(problem.high):
        return None

    def relaxed(ttft_price: float, tpot_price: float) -> _At:
        def priced(y: Floats) -> Floats:
            value = problem.cost(y)
            value = value + ttft_price * problem.ttft_ms(y) if ttft_price else value
            return value + tpot_price * problem.tpot_ms(y) if tpot_price else value

        y = _least_on(priced, problem.low, problem.high)
        return _At(y, *problem.excess_ms(problem.ttft_ms(y), problem.tpot_ms(y)))

    found = least_prices(relaxed, problem.time_scale)
    convex = bool((convex_from(problem) <= problem.low).all())
    if found is None:  # the limit is met at the very fastest only
        y = problem.high
        return MemoryAnswer(y, float(problem.cost(y).sum()), 0.0, convex, 0.0, 0.0)
    y = found.answer.y
    cost = float(problem.cost(y).sum())
    bound = cost
    for price, excess in (
        (found.ttft_price, found.answer.ttft_excess),
        (found.tpot_price, found.answer.tpot_excess),
    ):
        bound += price * excess if price else 0.0
    return MemoryAnswer(y, cost, bound, convex, found.ttft_price, found.tpot_price)


def _least_on(value: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Minimise convex functions side by side, by golden section."""
    left, right = low.copy(), high.copy()
    for _ in range(44):
        a, b = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        lower = value(a) <= value(b)
        right, left = np.where(lower, b, right), np.where(lower, left, a)
    found = (left + right) / 2
    for edge in (high, low):  # flat or at an edge: the smaller size
        found = np.where(value(edge) <= value(found), edge, found)
    return np.asarray(found)


def _like(each: Floats, y: Floats) -> Floats:
    return np.asarray(each[:, None]) if y.ndim == 2 else each
