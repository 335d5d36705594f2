"""The model's storage device, by the kernel's account."""

from __future__ import annotations

import os
from pathlib import Path

from remoe_edge.telemetry.attribute import Attribute
from remoe_edge.telemetry.sample import Missing, Sample

_SECTOR_BYTES = 512  # in diskstats always, whatever the device's own


class Disk:
    """Read bytes, reads and busy time of the device (or partition) that a file lies on."""

    name = "diskstats"

    def __init__(self, root: Path, device: int | None) -> None:
        """Take `device` as `remoe_edge.machine.disk.device_of` finds it."""
        if device is None:
            raise Missing("the model lies on no block device")
        self._key = [str(os.major(device)), str(os.minor(device))]
        try:
            self._file = Attribute(root / "proc/diskstats")
        except OSError as error:
            raise Missing(f"no diskstats ({error.strerror})") from None
        start = self._columns()
        if start is None:
            self._file.close()
            raise Missing("the model lies on no block device that diskstats knows")
        self.device = start[2]
        self._start = self._before = [float(each) for each in start[3:13]]
        self._before_s: float | None = None

    def _columns(self) -> list[str] | None:
        for line in self._file.text().splitlines():
            columns = line.split()
            if columns[:2] == self._key and len(columns) >= 13:
                return columns
        return None

    def read(self, sample: Sample) -> None:
        """Fill in bytes and reads since the start, and the busy share since the sample before."""
        columns = self._columns()
        if columns is None:
            raise Missing("the model's device has gone from diskstats")
        now = [float(each) for each in columns[3:13]]
        sample.disk_reads = int(now[0] - self._start[0])
        sample.disk_bytes["read"] = (now[2] - self._start[2]) * _SECTOR_BYTES
        sample.disk_bytes["written"] = (now[6] - self._start[6]) * _SECTOR_BYTES
        if self._before_s is not None and sample.t_s > self._before_s:
            busy_ms = now[9] - self._before[9]
            share = busy_ms / (sample.t_s - self._before_s) / 10
            sample.loads_percent["disk"] = min(100.0, share)
        self._before, self._before_s = now, sample.t_s

    def close(self) -> None:
        """Close the file."""
        self._file.close()
