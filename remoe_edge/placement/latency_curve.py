"""T(y): the time of one row through one expert on a function of y bytes, for one kind of machine.

Measured points (or `by_processors`) are fitted by Remoe's T(y) = θ1·exp(−θ2·y) + θ3, y in GiB, where
processors come in proportion to memory. Where they come in steps, `Steps` keeps the points as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.placement.activation import Floats
from remoe_edge.placement.fit import Fit, fit_latency
from remoe_edge.placement.price import FunctionPrice

GIB = 1 << 30
FIT_WORST = 0.1  # the largest relative error of a fit that is still taken for T


@dataclass(frozen=True)
class Points:
    """Hold measured sizes and times of one kind of machine: bytes, milliseconds a row."""

    kind: str
    sizes: tuple[int, ...]
    row_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise(self.sizes))
        if not self.sizes or len(self.sizes) != len(self.row_ms) or not rising:
            raise InputError(f"{self.kind}: times are wanted for sizes that rise")
        if not all(0 < t < 1e12 for t in self.row_ms) or self.sizes[0] <= 0:
            raise InputError(f"{self.kind}: sizes and times must be above 0")


@dataclass(frozen=True)
class Exponential:
    """Hold the fit, y in GiB."""

    kind: str
    fit: Fit

    def __call__(self, n_bytes: npt.ArrayLike) -> Floats:
        """Give the milliseconds of a row at sizes in bytes."""
        y = np.asarray(n_bytes, np.float64) / GIB
        return np.asarray(self.fit.theta1 * np.exp(-self.fit.theta2 * y) + self.fit.theta3)


@dataclass(frozen=True)
class Steps:
    """Hold the points: a size is as fast as the largest point that it reaches."""

    kind: str
    points: Points

    @cached_property
    def _arrays(self) -> tuple[Floats, Floats]:
        return np.asarray(self.points.sizes, np.float64), np.asarray(self.points.row_ms)

    def __call__(self, n_bytes: npt.ArrayLike) -> Floats:
        """Give the milliseconds of a row at sizes in bytes; below the first point, that one's."""
        sizes, times = self._arrays
        at = np.searchsorted(sizes, np.asarray(n_bytes, np.float64), side="right") - 1
        return np.asarray(times[np.maximum(at, 0)])


Curve = Exponential | Steps


def curve(points: Points, *, stepwise: bool | None = None) -> Curve:
    """Fit the exponential, or keep the points as steps.

    Without `stepwise`, the fit is taken where no point lies off it by more than 10 %. Raises
    InputError for fewer points than a fit needs.
    """
    if stepwise:
        return Steps(points.kind, points)
    try:
        fit = fit_latency([size / GIB for size in points.sizes], points.row_ms)
    except ValueError as error:
        if stepwise is None:
            return Steps(points.kind, points)
        raise InputError(f"{points.kind}: no T(y) from these points: {error}") from error
    if stepwise is None and fit.worst > FIT_WORST:
        return Steps(points.kind, points)
    return Exponential(points.kind, fit)


def by_processors(
    kind: str,
    platform: FunctionPrice,
    one_core_ms: float,
    *,
    parallel: float = 0.9,
    least_bytes: int = 0,
) -> Points:
    """Reckon the points from processors where nobody has measured: Amdahl's law.

    `one_core_ms`: a row on one whole core. `parallel`: the part that more cores share. Below one
    core all of the work slows down.
    """
    sizes: Sequence[int] = platform.sizes(least_bytes)
    if not sizes:
        raise InputError(f"{kind}: no function has {least_bytes} bytes")
    times = []
    for size in sizes:
        cores = platform.vcpus(size)
        share = 1 / cores if cores <= 1 else (1 - parallel) + parallel / cores
        times.append(one_core_ms * share)
    return Points(kind, tuple(sizes), tuple(times))
