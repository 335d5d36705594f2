"""Power rails that the kernel's hwmon drivers measure: a Jetson's INA3221, and chips with powerN."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.telemetry.attribute import Attribute, opened, value
from remoe_edge.telemetry.sample import Missing, Sample

# The rail of a module that all others hang on: Orin's and Xavier NX's, and Nano's.
INPUT_RAILS = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class _Rail:
    """Hold a rail's files: power in µW, or voltage in mV and current in mA."""

    name: str
    files: tuple[Attribute, ...]

    def watts(self) -> float | None:
        read = [value(file) for file in self.files]
        if any(each is None for each in read):
            return None
        return read[0] / 1e6 if len(read) == 1 else read[0] * read[1] / 1e6  # type: ignore[operator]


class Rails:
    """Read the rails; `total` names what `power_w` is, None where only parts are measured."""

    name = "hwmon"

    def __init__(self, root: Path) -> None:
        self._rails: list[_Rail] = []
        module: list[str] = []
        for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
            chip = kernel_files.word(folder / "name") or folder.name
            if chip == "ina3221":
                found = _ina3221(folder)
                module += [rail.name for rail in found]
            else:
                found = _power_files(folder, chip)
            self._rails += found
        if not self._rails:
            raise Missing("no INA3221 and no hwmon power rail")
        whole = next((name for name in INPUT_RAILS if name in module), None)
        self._parts = [whole] if whole else module
        self.total = " + ".join(self._parts) or None

    def read(self, sample: Sample) -> None:
        """Fill in each rail's power, and the total where all of its rails answered."""
        for rail in self._rails:
            watts = rail.watts()
            if watts is not None:
                sample.rails_w[rail.name] = watts
        if self._parts and all(name in sample.rails_w for name in self._parts):
            sample.power_w = sum(sample.rails_w[name] for name in self._parts)

    def close(self) -> None:
        """Close the files."""
        for rail in self._rails:
            for file in rail.files:
                file.close()


def _ina3221(folder: Path) -> list[_Rail]:
    rails = []
    for channel in (1, 2, 3):
        label = kernel_files.word(folder / f"in{channel}_label") or f"channel {channel}"
        if label == "NC":  # not connected
            continue
        volts, amperes = (opened(folder / f"{kind}{channel}_input") for kind in ("in", "curr"))
        if volts and amperes:
            rails.append(_Rail(label, (volts, amperes)))
        else:
            for file in (volts, amperes):
                if file:
                    file.close()
    return rails


def _power_files(folder: Path, chip: str) -> list[_Rail]:
    rails = []
    for path in sorted(folder.glob("power*_*")):
        match = re.fullmatch(r"power(\d+)_(input|average)", path.name)
        # Some drivers have both; the moment's value serves the integral better.
        if match is None or (
            match[2] == "average" and (folder / f"power{match[1]}_input").exists()
        ):
            continue
        file = opened(path)
        if file:
            label = kernel_files.word(folder / f"power{match[1]}_label") or f"power{match[1]}"
            rails.append(_Rail(f"{chip} {label}", (file,)))
    return rails
