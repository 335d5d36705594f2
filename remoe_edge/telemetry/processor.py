"""The processor: load, steal, waiting for I/O, clocks, and what the firmware throttled."""

from __future__ import annotations

import re
from pathlib import Path

from remoe_edge.telemetry.attribute import Attribute, opened, value
from remoe_edge.telemetry.sample import Missing, Sample


class Processor:
    """Turn /proc/stat into percent of all cores since the sample before; clocks in MHz."""

    name = "processor"

    def __init__(self, root: Path) -> None:
        try:
            self._stat = Attribute(root / "proc/stat")
        except OSError as error:
            raise Missing(f"no /proc/stat ({error.strerror})") from None
        cpus = root / "sys/devices/system/cpu"
        # One policy for each group of cores that share a clock.
        self._clocks: dict[str, Attribute] = {}
        for folder in sorted(cpus.glob("cpufreq/policy*")):
            if (file := opened(folder / "scaling_cur_freq")) is not None:
                self._clocks[f"cpu{folder.name.removeprefix('policy')}"] = file
        self._throttled = [
            file
            for path in sorted(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
            if (file := opened(path)) is not None
        ]
        self.has_clocks = bool(self._clocks)
        self._cpuinfo: Attribute | None = None
        if not self._clocks and _megahertz(root / "proc/cpuinfo"):
            # What a virtual machine shows; it need not follow the real clock.
            self._cpuinfo = Attribute(root / "proc/cpuinfo")
            self.has_clocks = True
        self._before: list[float] | None = None

    def read(self, sample: Sample) -> None:
        """Fill in loads `cpu`, `steal` and `iowait`, clocks and throttle events."""
        first = self._stat.text(512).partition("\n")[0]
        now = [float(each) for each in first.split()[1:9]]
        if self._before is not None:
            user, nice, system, idle, iowait, irq, softirq, steal = (
                new - old for new, old in zip(now, self._before, strict=True)
            )
            total = user + nice + system + idle + iowait + irq + softirq + steal
            if total > 0:
                busy = user + nice + system + irq + softirq
                for name, ticks in (("cpu", busy), ("steal", steal), ("iowait", iowait)):
                    sample.loads_percent[name] = max(0.0, 100 * ticks / total)
        self._before = now
        for name, file in self._clocks.items():
            kilohertz = value(file)
            if kilohertz is not None:
                sample.clocks_mhz[name] = kilohertz / 1000
        if self._cpuinfo is not None and (found := _MEGAHERTZ.search(self._cpuinfo.text(4096))):
            sample.clocks_mhz["cpu0"] = float(found[1])
        if self._throttled:
            counts = [value(file) or 0.0 for file in self._throttled]
            sample.throttle_events["cpu"] = sum(counts)

    def close(self) -> None:
        """Close the files."""
        files = [self._stat, *self._clocks.values(), *self._throttled]
        for file in [*files, *([self._cpuinfo] if self._cpuinfo else [])]:
            file.close()


_MEGAHERTZ = re.compile(r"^cpu MHz\s*:\s*([\d.]+)", re.MULTILINE)


def _megahertz(path: Path) -> bool:
    try:
        with path.open() as file:
            return _MEGAHERTZ.search(file.read(4096)) is not None
    except OSError:
        return False
