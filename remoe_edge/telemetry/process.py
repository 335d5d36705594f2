"""One process: resident memory, page faults, share of the cores."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from remoe_edge.telemetry.attribute import Attribute
from remoe_edge.telemetry.sample import Missing, Sample


class Process:
    """Follow one process by its id; its faults count from its own start."""

    name = "process"

    def __init__(self, pid: int) -> None:
        try:
            self._process = psutil.Process(pid)
            self._stat = Attribute(Path(f"/proc/{pid}/stat"))
        except (psutil.Error, OSError):
            raise Missing(f"no process {pid}") from None
        self._cores = os.cpu_count() or 1
        self._before: tuple[float, float] | None = None

    def read(self, sample: Sample) -> None:
        """Fill in memory `rss`, faults `minor` and `major`, and load `process` (of all cores)."""
        try:
            sample.memory_bytes["rss"] = self._process.memory_info().rss
            # The name, in brackets, may hold anything; fields are counted from behind it.
            fields = self._stat.text(4096).rpartition(")")[2].split()
        except (psutil.Error, OSError):
            raise Missing("the process has ended") from None
        sample.faults["minor"], sample.faults["major"] = float(fields[7]), float(fields[9])
        seconds = (float(fields[11]) + float(fields[12])) / _TICKS
        if self._before is not None and sample.t_s > self._before[0]:
            share = (seconds - self._before[1]) / (sample.t_s - self._before[0]) / self._cores
            sample.loads_percent["process"] = 100 * share
        self._before = (sample.t_s, seconds)

    def close(self) -> None:
        """Close the file."""
        self._stat.close()


_TICKS = os.sysconf("SC_CLK_TCK")
