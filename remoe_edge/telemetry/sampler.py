"""Look at the machine a few times a second, in a thread of its own.

It starts no service, needs no root and never fails a run: what cannot be read here is named once, in
one line. It takes at most 1 % of a core: after a look that cost more, it waits longer.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from remoe_edge.errors import InputError
from remoe_edge.machine.disk import device_of
from remoe_edge.telemetry.chips import Chips
from remoe_edge.telemetry.disk import Disk
from remoe_edge.telemetry.energy import Energy, EnergyTrack, Idle
from remoe_edge.telemetry.jetson import Jetson
from remoe_edge.telemetry.pressure import Pressure
from remoe_edge.telemetry.process import Process
from remoe_edge.telemetry.processor import Processor
from remoe_edge.telemetry.rails import Rails
from remoe_edge.telemetry.ram import Ram
from remoe_edge.telemetry.rapl import Rapl
from remoe_edge.telemetry.sample import Missing, Sample, Source
from remoe_edge.telemetry.tegra import Tegra
from remoe_edge.telemetry.thermal import Thermal

SLOWEST_HZ, FASTEST_HZ = 1.0, 10.0
CORE_SHARE = 0.01
# Every tick of jtop.service costs it and its client some milliseconds on the machine we measure.
JTOP_INTERVAL_S = 0.5
_JTOP_ANSWER_S = 10.0
_END_S = 3.0

T = TypeVar("T")


class Sampler:
    """Keep the last `keep` samples, and the energy of any interval since `start`.

    model: a file whose storage device is watched, or None.
    pid: the process to follow; None: this one.
    hz: samples a second, 1 to 10. Fewer come when they would cost more than 1 % of a core.
    root: where /proc and /sys are; another place for recorded trees.
    jtop: ask jetson-stats first, where it is installed.
    on_sample: called with each sample, in the sampler's thread; what it raises ends the sampling.

    Safe to use from several threads.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        pid: int | None = None,
        hz: float = 2.0,
        root: str | os.PathLike[str] = "/",
        jtop: bool = True,
        keep: int = 1200,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> None:
        if not SLOWEST_HZ <= hz <= FASTEST_HZ:
            raise InputError(f"{hz:g} samples a second: choose {SLOWEST_HZ:g} to {FASTEST_HZ:g}")
        self._model, self._pid, self._root = model, pid or os.getpid(), Path(root)
        self.interval_s = 1 / hz
        self._jtop = jtop
        self.on_sample = on_sample
        self._lock = threading.RLock()
        self._sources: list[Source] = []
        self._missing: dict[str, str] = {}
        self._samples: deque[Sample] = deque(maxlen=keep)
        self._track = EnergyTrack()
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.idle: Idle | None = None
        self.power_source: str | None = None
        self.cpu_s = 0.0
        self.lost: list[str] = []

    # --- life ---

    def start(self) -> Sampler:
        """Open what is there and take a first sample; return once it is taken."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="remoe-edge-sampler", daemon=True
            )
            self._thread.start()
            self._ready.wait()
        return self

    def stop(self) -> None:
        """End the thread. Idempotent; samples and energies stay."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_END_S)

    def __enter__(self) -> Sampler:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what it found ---

    @property
    def sources(self) -> list[str]:
        """List the back ends that are being read."""
        with self._lock:
            return [source.name for source in self._sources]

    @property
    def missing(self) -> dict[str, str]:
        """Tell, for each back end that is not there, why."""
        with self._lock:
            return dict(self._missing)

    def missing_line(self) -> str | None:
        """Say in one line what the samples will not have, and why; None if nothing is missing."""
        with self._lock:
            names = self.sources
            wanting = []
            if self.power_source is None:
                wanting.append(f"power ({self._why('jtop', 'hwmon', 'rapl')})")
            if not {"jtop", "thermal zones", "hwmon chips"} & set(names):
                wanting.append(f"temperatures ({self._why('thermal zones')})")
            clocks = [s.has_clocks for s in self._sources if isinstance(s, Processor)]
            if not any(clocks):
                wanting.append("clocks (no cpufreq)")
            for name, what in (("pressure", "memory and I/O pressure"), ("diskstats", "disk")):
                if name in self._missing:
                    wanting.append(f"{what} ({self._missing[name]})")
        return f"telemetry does without {', '.join(wanting)}" if wanting else None

    def _why(self, *names: str) -> str:
        reasons = [self._missing[name] for name in names if name in self._missing]
        return "; ".join(reasons) or "no sensor says the total"

    @property
    def samples(self) -> list[Sample]:
        """Return what is kept, oldest first."""
        with self._lock:
            return list(self._samples)

    @property
    def latest(self) -> Sample | None:
        """Return the newest sample."""
        with self._lock:
            return self._samples[-1] if self._samples else None

    # --- energy ---

    def edge(self) -> float:
        """Read power now, so that an interval can begin or end here; return the time, in s."""
        with self._lock:
            sample = Sample(time.perf_counter())
            for source in list(self._sources):
                if isinstance(source, Jetson | Rails | Rapl):
                    self._read(source, sample)
            sample.leave_out_nonsense()
            self._track.add(sample.t_s, sample.power_w, sample.energy_j)
            return sample.t_s

    def energy(self, start_s: float, end_s: float) -> Energy | None:
        """Compute what the machine took between two times of `time.perf_counter()`.

        None without a sensor of the total, or where the readings do not reach: begin and end
        intervals with `edge()`.
        """
        with self._lock:
            found = self._track.between(start_s, end_s)
            method, source = self._track.method, self.power_source
        if found is None or method is None or source is None:
            return None
        joules, n_samples, gap_s = found
        return Energy(joules, end_s - start_s, method, source, n_samples, gap_s, self.idle)

    def measure_idle(self, seconds: float) -> Idle | None:
        """Wait, and take the mean power of that time as idle; at once None without a power sensor.

        Nothing of ours should run meanwhile: call it before a model is loaded.
        """
        if self.power_source is None:
            return None
        start_s = self.edge()
        self._stop.wait(seconds)
        end_s = self.edge()
        spent = self.energy(start_s, end_s)
        if spent is not None:
            self.idle = Idle(spent.joules / spent.seconds, spent.seconds, spent.n_samples)
        return self.idle

    # --- the thread ---

    def _run(self) -> None:
        try:
            with self._lock:
                self._open()
                self._sample()
        finally:
            self._ready.set()
        pause_s = self.interval_s
        while not self._stop.wait(pause_s):
            began_s, began_cpu_s = time.perf_counter(), time.thread_time()
            with self._lock:
                self._sample()
            cost_s = time.thread_time() - began_cpu_s
            self.cpu_s += cost_s
            pause_s = pause(self.interval_s, time.perf_counter() - began_s, cost_s)
        with self._lock:
            for source in self._sources:
                source.close()
            self._sources.clear()

    def _open(self) -> None:
        root = self._root
        if self._jtop:
            self._add(
                "jtop",
                lambda: within(
                    _JTOP_ANSWER_S, lambda: Jetson(max(self.interval_s, JTOP_INTERVAL_S))
                ),
            )
        if "jtop" not in self.sources:
            self._open_power_files()
        self._add("rapl", lambda: Rapl(root))
        self._add("hwmon chips", lambda: Chips(root))
        self._add("processor", lambda: Processor(root))
        self._add("meminfo", lambda: Ram(root))
        self._add("pressure", lambda: Pressure(root))
        if self._model is not None:
            path = self._model
            self._add("diskstats", lambda: Disk(root, device_of(Path(path))))
        self._add("process", lambda: Process(self._pid))
        self._name_power_source()

    def _open_power_files(self) -> None:
        """Open what jtop would tell, where the kernel tells it to everyone."""
        self._add("hwmon", lambda: Rails(self._root))
        self._add("thermal zones", lambda: Thermal(self._root))
        self._add("tegra", lambda: Tegra(self._root))

    def _add(self, name: str, make: Callable[[], Source]) -> None:
        try:
            self._sources.append(make())
        except Missing as missing:
            self._missing[name] = str(missing)
        except Exception as error:  # a kernel file in a form that nobody has seen yet
            self._missing[name] = f"{type(error).__name__}: {error}"

    def _name_power_source(self) -> None:
        before, self.power_source = self.power_source, None
        totals = {
            source.name: source.total
            for source in self._sources
            if isinstance(source, Jetson | Rails | Rapl) and source.total is not None
        }
        # An energy counter is preferred, as the track does.
        for name in ("rapl", "jtop", "hwmon"):
            if name in totals:
                self.power_source = f"{name}: {totals[name]}"
                break
        if self.power_source != before:  # no interval may hold some of both
            self._track.clear()

    def _sample(self) -> None:
        sample = Sample(time.perf_counter())
        for source in list(self._sources):
            self._read(source, sample)
        sample.leave_out_nonsense()
        self._track.add(sample.t_s, sample.power_w, sample.energy_j)
        self._samples.append(sample)
        if self.on_sample is not None:
            try:
                self.on_sample(sample)
            except Exception as error:
                self.on_sample = None
                self.lost.append(f"telemetry: samples are no longer passed on: {error}")

    def _read(self, source: Source, sample: Sample) -> None:
        try:
            source.read(sample)
        except Exception as error:
            why = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
            self._sources.remove(source)
            source.close()
            self._missing[source.name] = why
            self.lost.append(f"telemetry goes on without {source.name}: {why}")
            if source.name == "jtop":
                self._open_power_files()
            self._name_power_source()


def pause(interval_s: float, took_s: float, cpu_s: float) -> float:
    """Compute how long to wait after a look, so that looking takes 1 % of a core at most."""
    return max(interval_s - took_s, cpu_s * (1 / CORE_SHARE - 1), 0.0)


def within(seconds: float, make: Callable[[], T]) -> T:
    """Do what may never come back in a thread of its own. Raises Missing after `seconds`."""
    done: list[T] = []
    failed: list[Exception] = []

    def attempt() -> None:
        try:
            done.append(make())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise Missing(f"jtop.service does not answer within {seconds:g} s")
    return done[0]
