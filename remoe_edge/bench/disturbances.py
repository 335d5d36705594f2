"""Was a run disturbed? The machine's own counters, before and after it.

What cannot be read is left out: a virtual machine knows no temperature, a container no clock.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remoe_edge.machine import kernel_files

ROOT = Path("/")

# Beyond these a run is marked; shares of the machine's, or of the wall clock's, time.
STEAL_SHARE = 0.02
OTHER_LOAD_SHARE = 0.10
CPU_WAIT_SHARE = 0.25
MEMORY_WAIT_SHARE = 0.05
# Below this load of others, who waits for a processor waits for the run itself.
_SOME_LOAD_SHARE = 0.03
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PRESSURES = ("cpu", "io", "memory")


@dataclass(frozen=True)
class Reading:
    """Hold the counters of one moment; seconds, degrees Celsius, kHz."""

    at: float
    busy_s: float
    steal_s: float
    total_s: float
    pressure_s: dict[str, float]
    events: dict[str, int]
    celsius: dict[str, float]
    max_khz: dict[str, int]
    khz: dict[str, int]
    cooling: dict[str, int]


@dataclass(frozen=True)
class Disturbance:
    """Hold what was found: `marks`, a line each, empty for a quiet run, and the figures behind them."""

    marks: list[str]
    figures: dict[str, Any] = field(default_factory=dict)


class DisturbanceMeter:
    """Look at the machine from when it is made until `finish`; not a thread: call `tick` often.

    in_box: the run has a memory limit of its own, so that waiting for memory is its own affair.
    """

    def __init__(self, root: Path = ROOT, *, every_s: float = 1.0, in_box: bool = False) -> None:
        self._root, self._every_s, self._in_box = root, every_s, in_box
        self._passive_celsius = _passive_trips(root)
        self._before = read(root)
        self._seen = [self._before]

    def tick(self) -> None:
        """Look again, once `every_s` seconds at most."""
        if time.monotonic() - self._seen[-1].at >= self._every_s:
            self._seen.append(read(self._root))

    def finish(self, own_cpu_s: float) -> Disturbance:
        """Judge a run that used `own_cpu_s` of processor time itself."""
        self._seen.append(read(self._root))
        before, after = self._before, self._seen[-1]
        found = judge(before, after, own_cpu_s, in_box=self._in_box)
        marks, figures = found.marks, found.figures
        for name, khz in before.max_khz.items():
            lowest = min(each.max_khz.get(name, khz) for each in self._seen)
            if lowest < khz:
                marks.append(f"the clock was lowered: {name} from {khz} to {lowest} kHz")
        for name, state in before.cooling.items():
            highest = max(each.cooling.get(name, state) for each in self._seen)
            if "fan" not in name.lower() and highest > state:
                marks.append(f"throttled: {name} went from state {state} to {highest}")
        hottest = {
            name: max(each.celsius.get(name, value) for each in self._seen)
            for name, value in before.celsius.items()
        }
        for name, trip in self._passive_celsius.items():
            if hottest.get(name, trip - 1) >= trip:
                marks.append(f"{name} reached {hottest[name]:.0f} °C, where it begins to throttle")
        if hottest:
            figures["celsius_before"], figures["celsius_highest"] = before.celsius, hottest
        if before.max_khz:
            figures["max_khz"] = before.max_khz
            figures["mean_khz"] = {
                name: round(sum(each.khz.get(name, khz) for each in self._seen) / len(self._seen))
                for name, khz in before.khz.items()
            }
        return found


def read(root: Path = ROOT) -> Reading:
    """Read all counters."""
    busy = steal = total = 0.0
    for line in kernel_files.text(root / "proc/stat").splitlines():
        if line.startswith("cpu "):
            ticks = [(kernel_files.whole(each) or 0) / _TICKS_PER_S for each in line.split()[1:9]]
            user, nice, system, idle, iowait, irq, softirq, steal = (ticks + [0.0] * 8)[:8]
            busy = user + nice + system + irq + softirq
            total = busy + idle + iowait + steal
    cpus = root / "sys/devices/system/cpu"
    counters = [
        *cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"),
        *(root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"),  # Jetson: over-current
    ]
    return Reading(
        at=time.monotonic(),
        busy_s=busy,
        steal_s=steal,
        total_s=total,
        pressure_s=_pressures(root),
        events=_numbers(counters, root),
        celsius={
            name: value / 1000
            for name, zone in _zones(root)
            if (value := kernel_files.number(zone / "temp")) is not None
        },
        max_khz=_numbers(cpus.glob("cpu[0-9]*/cpufreq/scaling_max_freq"), root),
        khz=_numbers(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), root),
        cooling={
            f"{device.name} {kernel_files.text(device / 'type').strip()}": value
            for device in sorted((root / "sys/class/thermal").glob("cooling_device*"))
            if (value := kernel_files.number(device / "cur_state")) is not None
        },
    )


def judge(
    before: Reading, after: Reading, own_cpu_s: float, *, in_box: bool = False
) -> Disturbance:
    """Compare the counters of two moments."""
    marks: list[str] = []
    figures: dict[str, Any] = {"seconds": round(after.at - before.at, 3)}
    total_s = after.total_s - before.total_s
    others = 1.0  # unless it is known
    if total_s > 0:
        steal = (after.steal_s - before.steal_s) / total_s
        others = max(0.0, after.busy_s - before.busy_s - own_cpu_s) / total_s
        figures["steal_share"], figures["other_load_share"] = round(steal, 4), round(others, 4)
        if steal > STEAL_SHARE:
            marks.append(f"the host took {steal:.0%} of the processors' time (steal)")
        if others > OTHER_LOAD_SHARE:
            marks.append(f"other programs used {others:.0%} of the processors")
    wall_s = max(after.at - before.at, 1e-9)
    for name, seconds in after.pressure_s.items():
        if name in before.pressure_s:
            figures[f"psi_{name}_share"] = round((seconds - before.pressure_s[name]) / wall_s, 4)
    waited = figures.get("psi_cpu_some_share", 0)
    if waited > CPU_WAIT_SHARE and others > _SOME_LOAD_SHARE:
        marks.append(f"something waited for a processor in {waited:.0%} of the time")
    starved = figures.get("psi_memory_full_share", 0)
    if starved > MEMORY_WAIT_SHARE and not in_box:
        marks.append(f"everything waited for memory in {starved:.0%} of the time")
    for name, count in after.events.items():
        if count > before.events.get(name, count):
            marks.append(f"throttled: {name} rose by {count - before.events[name]}")
    return Disturbance(marks, figures)


def _zones(root: Path) -> list[tuple[str, Path]]:
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    return [(kernel_files.text(zone / "type").strip() or zone.name, zone) for zone in zones]


def _passive_trips(root: Path) -> dict[str, float]:
    """Find the temperature at which each zone begins to slow what heats it."""
    found: dict[str, float] = {}
    for name, zone in _zones(root):
        for kind in zone.glob("trip_point_*_type"):
            value = kernel_files.number(zone / kind.name.replace("_type", "_temp"))
            if kernel_files.text(kind).strip() == "passive" and value is not None and value > 0:
                found[name] = min(found.get(name, value / 1000), value / 1000)
    return found


def _pressures(root: Path) -> dict[str, float]:
    found = {}
    for resource in _PRESSURES:
        for line in kernel_files.text(root / "proc/pressure" / resource).splitlines():
            kind, total = line.partition(" ")[0], line.rpartition("total=")[2]
            total_us = kernel_files.whole(total.strip())
            if kind and total_us is not None:
                found[f"{resource}_{kind}"] = total_us / 1e6
    return found


def _numbers(paths: Any, root: Path) -> dict[str, int]:
    found = {}
    for path in sorted(paths):
        value = kernel_files.number(path)
        if value is not None:
            found[str(path.relative_to(root))] = value
    return found
