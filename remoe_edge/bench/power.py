"""Energy of a run, where there is a sensor of the total."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remoe_edge.telemetry import Sampler

HZ = 4.0
# Begin and end of an answer's decoding, by time.perf_counter(), which is one for all processes.
Window = tuple[float, float]


class PowerMeter:
    """Measure one run after another with telemetry's sampler, idle power before the first.

    Without a sensor every figure is None, and `about` says why.
    """

    def __init__(self, sampler: Sampler, idle_seconds: float) -> None:
        self._sampler = sampler.start()
        self._sampler.measure_idle(idle_seconds)
        self._start_s = 0.0

    @classmethod
    def of(cls, model: Path, idle_seconds: float) -> PowerMeter:
        """Make a meter for a machine that rests; takes `idle_seconds` where there is a sensor."""
        return cls(Sampler(model, pid=os.getpid(), hz=HZ), idle_seconds)

    def about(self) -> dict[str, Any]:
        """Tell the sensor and the idle power, or what is missing."""
        idle = self._sampler.idle
        return {
            "source": self._sampler.power_source,
            "idle": None if idle is None else idle.as_json(),
            "missing": self._sampler.missing_line(),
        }

    def start(self) -> None:
        """Begin a run."""
        self._start_s = self._sampler.edge()

    def stop(self, windows: Sequence[Window], n_tokens: int) -> dict[str, Any]:
        """End a run; give its joules, those of decoding `n_tokens` in `windows`, and its watts."""
        end_s = self._sampler.edge()
        whole = self._sampler.energy(self._start_s, end_s)
        parts = [self._sampler.energy(start, end) for start, end in windows]
        known = [part for part in parts if part is not None]
        decode = net = None
        if known and len(known) == len(parts) and n_tokens > 0:
            decode = sum(part.joules for part in known) / n_tokens
            nets = [part.net_joules for part in known if part.net_joules is not None]
            net = sum(nets) / n_tokens if len(nets) == len(known) else None
        watts = [
            [round(sample.t_s - self._start_s, 3), round(sample.power_w, 3)]
            for sample in self._sampler.samples
            if sample.power_w is not None and self._start_s <= sample.t_s <= end_s
        ]
        return {
            "energy_joules": None if whole is None else round(whole.joules, 4),
            "joules_per_token": None if decode is None else round(decode, 5),
            "net_joules_per_token": None if net is None else round(net, 5),
            "watts": watts or None,
        }

    def close(self) -> None:
        """End the sampling."""
        self._sampler.stop()
