"""Families of samples as Prometheus reads them, written by its own client library.

Importing this needs prometheus_client, which the extra [serve] brings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

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

    def metric(self) -> Metric:
        """Give it as the library has it."""
        made = Metric(self.name.removesuffix("_total"), self.help, self.kind)
        for suffix, labels, value in self.samples:
            made.add_sample(self.name + suffix, dict(labels), value)
        return made


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
            family.add(total, "_bucket", le=floatToGoString(bound))
        return family.add(self._sum, "_sum").add(total, "_count")


def text(families: Iterable[Family]) -> str:
    """Write families in Prometheus' text format; those without a sample are left out."""
    return str(generate_latest(_registry(lambda: families)).decode())


def page(families: Callable[[], Iterable[Family]], accept: str | None) -> tuple[bytes, str]:
    """Write what a scraper is to get: (the page, its content type). accept: what it would like."""
    encode, kind = choose_encoder(accept)
    return bytes(encode(_registry(families))), str(kind)


def _registry(families: Callable[[], Iterable[Family]]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    return registry


class _Collector:
    def __init__(self, families: Callable[[], Iterable[Family]]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        return (each.metric() for each in self._families() if each.samples)
