"""One look at the machine: what was read, when, in which units."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

Group = dict[str, float]


@dataclass
class Sample:
    """Hold one look at the machine; what no sensor gave is None or not in its group.

    t_s is the monotonic clock of `time.perf_counter()`, the same in every process of a machine.
    Counters (`energy_j`, `rail_energy_j`, `disk_bytes`, `disk_reads`) count from the sampler's
    start, `faults` from the process', `throttle_events` from the machine's. `power_w` is the total:
    measured at this moment by a sensor, or the mean since the sample before by an energy counter.
    """

    t_s: float
    power_w: float | None = None
    rails_w: Group = field(default_factory=dict)
    energy_j: float | None = None
    rail_energy_j: Group = field(default_factory=dict)
    temperatures_c: Group = field(default_factory=dict)
    clocks_mhz: Group = field(default_factory=dict)
    loads_percent: Group = field(default_factory=dict)
    memory_bytes: Group = field(default_factory=dict)
    pressures_percent: Group = field(default_factory=dict)
    disk_bytes: Group = field(default_factory=dict)
    disk_reads: int | None = None
    faults: Group = field(default_factory=dict)
    throttle_events: Group = field(default_factory=dict)
    fans_percent: Group = field(default_factory=dict)
    fans_rpm: Group = field(default_factory=dict)
    nvpmodel: str | None = None

    def leave_out_nonsense(self) -> None:
        """Take out what is no finite number: a sensor may say "nan", or more than a float holds."""
        for name, value in self.__dict__.items():
            if isinstance(value, dict):
                for key in [key for key, each in value.items() if not math.isfinite(each)]:
                    del value[key]
            elif isinstance(value, float) and not math.isfinite(value) and name != "t_s":
                setattr(self, name, None)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without what is missing; floats to 3 decimals."""
        found: dict[str, Any] = {}
        for name, value in self.__dict__.items():
            if isinstance(value, dict):
                value = {key: _short(each) for key, each in value.items()}
            if value is not None and value != {}:
                found[name] = _short(value)
        return found


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


class Missing(Exception):
    """Say in a few words why a source cannot be had here, or can no longer."""


class Source(Protocol):
    """Read one kind of sensor. Made in the sampler's thread; raises Missing when it is not there."""

    name: str

    def read(self, sample: Sample) -> None:
        """Fill in what this source knows. Raises Missing when it has gone for good."""

    def close(self) -> None:
        """Let go of what is open."""
