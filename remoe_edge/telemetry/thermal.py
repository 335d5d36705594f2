"""Thermal zones: what the kernel's thermal framework measures."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.telemetry.attribute import Attribute, opened, value
from remoe_edge.telemetry.sample import Missing, Sample


class Thermal:
    """Read every zone that answers; one that sleeps is left out of a sample."""

    name = "thermal zones"

    def __init__(self, root: Path) -> None:
        self._zones: dict[str, Attribute] = {}
        for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
            file = opened(folder / "temp")
            if file is None:
                continue
            name = (kernel_files.word(folder / "type") or folder.name).removesuffix("-thermal")
            self._zones[name if name not in self._zones else f"{name} {folder.name[12:]}"] = file
        if not self._zones:
            raise Missing("no thermal zone")

    def read(self, sample: Sample) -> None:
        """Fill in temperatures."""
        for name, file in self._zones.items():
            thousandths = value(file)
            if thousandths is not None:
                sample.temperatures_c.setdefault(name, thousandths / 1000)

    def close(self) -> None:
        """Close the files."""
        for file in self._zones.values():
            file.close()
