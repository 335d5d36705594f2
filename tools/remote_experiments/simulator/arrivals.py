"""When requests come: at random, in bursts, or by the time of day. Times in milliseconds, sorted."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DAY_MS = 24 * 3600 * 1000.0


def poisson(n: int, per_s: float, rng: np.random.Generator) -> Floats:
    """Draw n arrivals at a constant mean rate, each apart from the others."""
    return np.cumsum(rng.exponential(1000 / per_s, n))


def bursty(
    n: int, per_s: float, rng: np.random.Generator, *, quiet_share: float = 0.9, burst_s: float = 30
) -> Floats:
    """Draw n arrivals that come only in bursts, at the same mean rate.

    Bursts last `burst_s` on the average; between them nothing comes, for `quiet_share` of the time.
    """
    found: list[float] = []
    now, quiet_s = 0.0, burst_s * quiet_share / (1 - quiet_share)
    while len(found) < n:
        end = now + 1000 * rng.exponential(burst_s)
        at = now
        while len(found) < n:
            at += rng.exponential(1000 / per_s * (1 - quiet_share))
            if at > end:
                break
            found.append(at)
        now = end + 1000 * rng.exponential(quiet_s)
    return np.asarray(found)


def daily(
    n: int, per_s: float, rng: np.random.Generator, *, swing: float = 0.9, day_ms: float = DAY_MS
) -> Floats:
    """Draw n arrivals whose rate follows a sine of a day, `swing` of the mean up and down."""
    found: list[float] = []
    at = 0.0
    while len(found) < n:
        # Thinning: draw at the highest rate, and keep by the rate of the hour.
        at += rng.exponential(1000 / (per_s * (1 + swing)))
        rate = 1 - swing * math.cos(2 * math.pi * at / day_ms)
        if rng.random() * (1 + swing) < rate:
            found.append(at)
    return np.asarray(found)


KINDS = {"poisson": poisson, "bursty": bursty, "daily": daily}
