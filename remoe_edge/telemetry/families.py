"""Families of samples for Prometheus, as plain values; exposition.py writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Labels = Mapping[str, str]


@dataclass
class Family:
    """Hold one metric: its name with the base unit last, kind, and samples by labels."""

    name: str
    kind: str  # counter, gauge or histogram
    help: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, value: float | None, suffix: str = "", **labels: str) -> Family:
        """Add a sample, unless there is no value."""
        if value is not None:
            self.samples.append((suffix, labels, value))
        return self


class Histogram:
    """Count observations below each bound, as Prometheus does: cumulative, +Inf last."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = sorted(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        at = next((i for i, b in enumerate(self._bounds) if value <= b), len(self._bounds))
        self._counts[at] += 1
        self._sum += value

    def add_to(self, family: Family) -> Family:
        """Add buckets, sum and count to a family of kind histogram."""
        total = 0
        for bound, count in zip([*self._bounds, math.inf], self._counts, strict=True):
            total += count
            family.add(total, "_bucket", le=_bound(bound))
        return family.add(self._sum, "_sum").add(total, "_count")


def _bound(value: float) -> str:
    return "+Inf" if value == math.inf else repr(float(value))
