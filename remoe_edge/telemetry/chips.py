"""What other hwmon chips know: fans, the drive's temperature, over-current throttling."""

from __future__ import annotations

import re
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.telemetry.attribute import Attribute, opened, value
from remoe_edge.telemetry.sample import Missing, Sample

_PWM_FULL = 255


class Chips:
    """Read fans, labelled temperatures (not one for each core) and throttle counters."""

    name = "hwmon chips"

    def __init__(self, root: Path) -> None:
        self._fans: dict[str, Attribute] = {}
        self._rpm: dict[str, Attribute] = {}
        self._temperatures: dict[str, Attribute] = {}
        self._throttling: dict[str, Attribute] = {}
        for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
            self._open(folder, kernel_files.word(folder / "name") or folder.name)
        if not self._files():
            raise Missing("no fan, drive temperature or throttle counter in hwmon")

    def _open(self, folder: Path, chip: str) -> None:
        for path in sorted(folder.glob("*")):
            kind, name = self._place(path, chip)
            if kind is not None and (file := opened(path)) is not None:
                kind[name] = file

    def _place(self, path: Path, chip: str) -> tuple[dict[str, Attribute] | None, str]:
        """Tell which readings a file belongs to, and its name there."""
        if match := re.fullmatch(r"pwm(\d+)", path.name):
            return self._fans, chip if match[1] == "1" else f"{chip} {match[1]}"
        if match := re.fullmatch(r"rpm|fan(\d+)_input", path.name):
            return self._rpm, chip if match[1] in (None, "1") else f"{chip} {match[1]}"
        if match := re.fullmatch(r"oc(\d+)_event_cnt", path.name):
            return self._throttling, f"over-current {match[1]}"
        if match := re.fullmatch(r"temp(\d+)_input", path.name):
            label = kernel_files.word(path.with_name(f"temp{match[1]}_label"))
            if label and not label.startswith("Core "):
                return self._temperatures, f"{chip} {label}"
        return None, ""

    def _files(self) -> list[Attribute]:
        groups = (self._fans, self._rpm, self._temperatures, self._throttling)
        return [file for group in groups for file in group.values()]

    def read(self, sample: Sample) -> None:
        """Fill in fans, temperatures and events, where jtop has not."""
        for group, into, scale in (
            (self._fans, sample.fans_percent, 100 / _PWM_FULL),
            (self._rpm, sample.fans_rpm, 1.0),
            (self._temperatures, sample.temperatures_c, 1e-3),
            (self._throttling, sample.throttle_events, 1.0),
        ):
            for name, file in group.items():
                found = value(file)
                if found is not None:
                    into.setdefault(name, found * scale)

    def close(self) -> None:
        """Close the files."""
        for file in self._files():
            file.close()
