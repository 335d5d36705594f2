"""Write families as Prometheus reads them, with its own client library.

Importing this needs prometheus_client, which the extra [serve] brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder

from remoe_edge.telemetry.families import Family


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
        return (_metric(each) for each in self._families() if each.samples)


def _metric(family: Family) -> Metric:
    made = Metric(family.name.removesuffix("_total"), family.help, family.kind)
    for suffix, labels, value in family.samples:
        made.add_sample(family.name + suffix, dict(labels), value)
    return made
