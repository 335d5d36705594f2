"""Prometheus' text format, version 0.0.4: families of samples with HELP and TYPE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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

    def text(self) -> str:
        """Write the family; nothing if it has no samples."""
        if not self.samples:
            return ""
        lines = [f"# HELP {self.name} {_help(self.help)}", f"# TYPE {self.name} {self.kind}"]
        for suffix, labels, value in self.samples:
            inner = ",".join(f'{name}="{_label(text)}"' for name, text in labels.items())
            lines.append(
                f"{self.name}{suffix}{'{' + inner + '}' if inner else ''} {_number(value)}"
            )
        return "\n".join(lines) + "\n"


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
            family.add(total, "_bucket", le=_number(bound))
        return family.add(self._sum, "_sum").add(total, "_count")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return (
        str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
    )


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
