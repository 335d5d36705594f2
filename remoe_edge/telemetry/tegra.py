"""A Jetson's GPU and power mode without jtop, as far as they may be read without root."""

from __future__ import annotations

import re
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.power_mode import mode_names
from remoe_edge.telemetry.attribute import Attribute, opened, value
from remoe_edge.telemetry.sample import Missing, Sample

_GPU_NODES = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b")


class Tegra:
    """Read the GPU's load and clock from devfreq, and nvpmodel's mode from its status file."""

    name = "tegra"

    def __init__(self, root: Path) -> None:
        self._load: Attribute | None = None
        self._clock: Attribute | None = None
        for folder in sorted(root.glob("sys/class/devfreq/*")):
            node = kernel_files.word(folder / "device/of_node/name").lower()
            if node in _GPU_NODES or "gpu" in node:
                self._load = opened(folder / "device/load")
                self._clock = opened(folder / "cur_freq")
                break
        self._status = root / "var/lib/nvpmodel/status"
        self._modes = mode_names(root)
        if self._load is None and self._clock is None and not self._status.exists():
            raise Missing("no Jetson GPU")

    def read(self, sample: Sample) -> None:
        """Fill in GPU load, GPU clock and the power mode."""
        if self._load and (permille := value(self._load)) is not None:
            sample.loads_percent["gpu"] = permille / 10
        if self._clock and (hertz := value(self._clock)) is not None:
            sample.clocks_mhz["gpu"] = hertz / 1e6
        found = re.match(r"pmode:0*(\d+)", kernel_files.word(self._status))
        if found:
            sample.nvpmodel = self._modes.get(found[1], found[1])

    def close(self) -> None:
        """Close the files."""
        for file in (self._load, self._clock):
            if file:
                file.close()
