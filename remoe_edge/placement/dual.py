"""Search the prices of two time limits, Remoe's λ: the least that make a relaxed answer keep both.

The dual function is concave, so that each excess falls as its own price rises, also when the other
price follows; two nested bisections find both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Relaxed(Protocol):
    """An answer to the problem with prices; excesses above 0 break a limit."""

    @property
    def ttft_excess(self) -> float:
        """Give the time to the first token above its limit."""
        ...

    @property
    def tpot_excess(self) -> float:
        """Give the time of a token above its limit."""
        ...


A = TypeVar("A", bound=Relaxed)
_STEPS = 36  # of a bisection over ratios of up to e^100: the price to seven digits


class Found(Generic[A]):
    """Hold an answer that keeps both limits, with its prices."""

    def __init__(self, answer: A, ttft_price: float, tpot_price: float) -> None:
        self.answer, self.ttft_price, self.tpot_price = answer, ttft_price, tpot_price


def least_prices(
    relaxed: Callable[[float, float], A], scale: float, steps: int = _STEPS
) -> Found[A] | None:
    """Find the least prices at which `relaxed(ttft_price, tpot_price)` keeps both limits.

    `scale`: about what a millisecond costs. None where no price is high enough.
    """

    def with_ttft(price: float) -> Found[A] | None:
        return _least(
            lambda tpot: Found(relaxed(price, tpot), price, tpot),
            lambda found: found.answer.tpot_excess, scale, steps,
        )  # fmt: skip

    def ttft_excess(found: Found[A] | None) -> float:
        return math.inf if found is None else found.answer.ttft_excess

    return _least(with_ttft, ttft_excess, scale, steps)


F = TypeVar("F")


def _least(
    at: Callable[[float], F], excess: Callable[[F], float], scale: float, steps: int
) -> F | None:
    """Bisect for the least price without excess, in logarithms; 0 is tried first."""
    free = at(0.0)
    if excess(free) <= 0:
        return free
    low, high = math.log(scale) - 40, math.log(scale) + 60
    best = at(math.exp(high))
    if excess(best) > 0:
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        tried = at(math.exp(middle))
        if excess(tried) <= 0:
            high, best = middle, tried
        else:
            low = middle
    return best
