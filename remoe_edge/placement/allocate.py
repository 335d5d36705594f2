"""Share slots out among layers whose times fall by T(y), so that the sum is least.

The Lagrangian of Remoe's memory problem with one price λ for a slot: each layer takes slots until
one more saves less than λ, and λ is what makes the slots add up. The layers' curves are convex, so
that strong duality holds and, in whole slots, moving single slots between layers ends at the
optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from remoe_edge.placement.fit import Fit


def continuous(fits: Sequence[Fit], total: float, low: float, high: Sequence[float]) -> list[float]:
    """Solve min Σ T_l(y_l) with Σ y_l = total and low ≤ y_l ≤ high_l, by bisection on the price.

    Raises ValueError where no such shares exist.
    """
    if not len(fits) * low <= total <= sum(high):
        raise ValueError(f"{total} slots cannot be shared out among {len(fits)} layers")

    def at(log_price: float) -> list[float]:
        return [_taken(fit, log_price, low, top) for fit, top in zip(fits, high, strict=True)]

    dearest = max((fit.gain(low) for fit in fits), default=0.0)
    if dearest <= 0:  # nothing is gained by any slot
        return _topped_up([low] * len(fits), total, high)
    # In logarithms: gains fall over many orders of magnitude.
    cheap, dear = math.log(dearest) - 700, math.log(dearest) + 1
    for _ in range(200):
        middle = (cheap + dear) / 2
        if sum(at(middle)) >= total:
            cheap = middle
        else:
            dear = middle
    return _topped_up(at(dear), total, high)


def _taken(fit: Fit, log_price: float, low: float, high: float) -> float:
    if fit.theta1 * fit.theta2 <= 0:
        return low
    wanted = (math.log(fit.theta1) + math.log(fit.theta2) - log_price) / fit.theta2
    return min(high, max(low, wanted))


def _topped_up(shares: list[float], total: float, high: Sequence[float]) -> list[float]:
    """Give what the price leaves over to layers that have room: none of them gains or all do."""
    left = total - sum(shares)
    for i, top in enumerate(high):
        more = min(max(0.0, left), top - shares[i])
        shares[i] += more
        left -= more
    return shares


def whole_slots(fits: Sequence[Fit], total: int, low: int, high: Sequence[int]) -> list[int]:
    """Share out whole slots, exactly: round the Lagrangian's answer, then move single slots.

    Raises ValueError where no such shares exist.
    """
    shares = [math.floor(y + 1e-9) for y in continuous(fits, total, low, high)]
    shares = [max(low, y) for y in shares]

    def gain(i: int) -> float:
        return fits[i](shares[i]) - fits[i](shares[i] + 1) if shares[i] < high[i] else -math.inf

    def loss(i: int) -> float:
        return fits[i](shares[i] - 1) - fits[i](shares[i]) if shares[i] > low else math.inf

    for _ in range(total - sum(shares)):
        shares[_best(gain, len(shares))] += 1
    while True:
        to, come = _best(gain, len(shares)), _best(lambda i: -loss(i), len(shares))
        if not gain(to) > loss(come) + 1e-12 * abs(loss(come)):
            return shares
        shares[to] += 1
        shares[come] -= 1


def _best(value: Callable[[int], float], n: int) -> int:
    return max(range(n), key=value)
