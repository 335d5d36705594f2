"""PSI: the share of time that tasks waited for memory, I/O or a core since the sample before."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.telemetry.attribute import Attribute
from remoe_edge.telemetry.sample import Missing, Sample


class Pressure:
    """Turn the kernel's totals into percent of the time between two samples."""

    name = "pressure"

    def __init__(self, root: Path) -> None:
        self._files: dict[str, Attribute] = {}
        for name in ("memory", "io", "cpu"):
            try:
                self._files[name] = Attribute(root / "proc/pressure" / name)
                self._files[name].text()
            except OSError:  # also EOPNOTSUPP on read: built in, but off
                self._files.pop(name, None)
        if not self._files:
            raise Missing("no pressure information (PSI) in this kernel")
        self._before: tuple[float, dict[str, float]] | None = None

    def read(self, sample: Sample) -> None:
        """Fill in `memory_some`, `memory_full`, `io_some` ... from the second sample on."""
        totals: dict[str, float] = {}
        for name, file in self._files.items():
            for line in file.text().splitlines():
                kind, _, rest = line.partition(" ")
                totals[f"{name}_{kind}"] = float(rest.rpartition("total=")[2])
        if self._before is not None and sample.t_s > self._before[0]:
            span_us = (sample.t_s - self._before[0]) * 1e6
            for name, total in totals.items():
                waited = total - self._before[1].get(name, total)
                sample.pressures_percent[name] = min(100.0, 100 * waited / span_us)
        self._before = (sample.t_s, totals)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
