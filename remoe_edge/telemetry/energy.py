"""From power or energy readings to joules of an interval, above idle, and per token."""

from __future__ import annotations

import bisect
from array import array
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Idle:
    """Hold the mean power of a window before the work, and the window."""

    watts: float
    seconds: float
    n_samples: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "idle_w": round(self.watts, 3),
            "window_s": round(self.seconds, 3),
            "n_samples": self.n_samples,
        }


@dataclass(frozen=True)
class Energy:
    """Hold what an interval took.

    method: "counter" (an energy counter's difference) or "trapezoid" (power over time).
    source: which sensor, and which rails or domains are counted.
    longest_gap_s: the longest time between two of the readings that it rests on.
    """

    joules: float
    seconds: float
    method: str
    source: str
    n_samples: int
    longest_gap_s: float
    idle: Idle | None = None

    @property
    def net_joules(self) -> float | None:
        """Joules above what the same time idle would have taken; None without an idle window."""
        return None if self.idle is None else self.joules - self.idle.watts * self.seconds

    def as_json(self, n_tokens: int = 0) -> dict[str, Any]:
        """Return plain values; with `n_tokens`, also joules per token and tokens per joule."""
        net = self.net_joules
        told: dict[str, Any] = {
            "energy_j": round(self.joules, 4),
            "net_energy_j": None if net is None else round(net, 4),
            "window_s": round(self.seconds, 4),
            "mean_power_w": round(self.joules / self.seconds, 3) if self.seconds > 0 else None,
            "method": self.method,
            "source": self.source,
            "n_samples": self.n_samples,
            "longest_gap_s": round(self.longest_gap_s, 4),
            "idle": None if self.idle is None else self.idle.as_json(),
        }
        if n_tokens > 0:
            told["joules_per_token"] = round(self.joules / n_tokens, 5)
            told["net_joules_per_token"] = None if net is None else round(net / n_tokens, 5)
            told["tokens_per_joule"] = _ratio(n_tokens, self.joules)
            told["net_tokens_per_joule"] = None if net is None else _ratio(n_tokens, net)
        return told


def _ratio(n_tokens: int, joules: float) -> float | None:
    return round(n_tokens / joules, 5) if joules > 0 else None


class EnergyTrack:
    """Keep (time, joules so far, watts) of the last `keep` readings, in the order of time."""

    def __init__(self, keep: int = 20_000) -> None:
        self._keep = keep
        # Plain doubles: a day at 10 Hz must not grow into megabytes of objects.
        self._times_s, self._joules, self._watts = array("d"), array("d"), array("d")
        self.method: str | None = None

    def add(self, t_s: float, watts: float | None, counter_j: float | None) -> None:
        """Take a reading; a counter (from any start on) is preferred to power. None: nothing read."""
        if counter_j is not None:
            method, joules = "counter", counter_j
        elif watts is not None:
            method, joules = "trapezoid", 0.0
        else:
            return
        if method != self.method:
            self.clear()
            self.method = method
        if self._times_s and t_s <= self._times_s[-1]:
            return
        power = watts or 0.0
        if method == "trapezoid" and self._times_s:
            mean = (self._watts[-1] + power) / 2
            joules = self._joules[-1] + mean * (t_s - self._times_s[-1])
        for column, number in ((self._times_s, t_s), (self._joules, joules), (self._watts, power)):
            column.append(number)
            if len(column) > 2 * self._keep:
                del column[: self._keep]

    def clear(self) -> None:
        """Forget everything: what comes is of another sensor."""
        for column in (self._times_s, self._joules, self._watts):
            del column[:]
        self.method = None

    def between(self, start_s: float, end_s: float) -> tuple[float, int, float] | None:
        """Return (joules, readings it rests on, longest gap in s); None where it is not covered."""
        times = self._times_s
        if not times or end_s <= start_s or start_s < times[0] or end_s > times[-1]:
            return None
        first = bisect.bisect_right(times, start_s) - 1
        last = bisect.bisect_left(times, end_s)
        gaps = [b - a for a, b in zip(times[first:last], times[first + 1 : last + 1], strict=True)]
        joules = self._until(end_s) - self._until(start_s)
        return joules, last - first + 1, max(gaps, default=0.0)

    def _until(self, t_s: float) -> float:
        """Compute the joules so far at a time between two readings."""
        at = bisect.bisect_right(self._times_s, t_s) - 1
        joules, watts = self._joules[at], self._watts[at]
        since = t_s - self._times_s[at]
        if since == 0:
            return joules
        share = since / (self._times_s[at + 1] - self._times_s[at])
        if self.method == "counter":
            return joules + share * (self._joules[at + 1] - joules)
        return joules + since * (watts + share * (self._watts[at + 1] - watts) / 2)
