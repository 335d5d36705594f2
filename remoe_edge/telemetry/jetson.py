"""A Jetson's sensors through jetson-stats' client; optional, never started by us.

jetson-stats is AGPL-3.0: an extra that the user installs, imported only when a sampler starts.
Units there: mW, kHz, kB, percent, degrees Celsius.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

from remoe_edge.telemetry.sample import Missing, Sample

_OFFLINE_C = -256


class Jetson:
    """Read jtop.service's latest values; they are as old as its interval at most."""

    name = "jtop"

    def __init__(self, interval_s: float) -> None:
        with _start_method_kept():
            try:
                import jtop
            except ImportError:
                raise Missing("jtop is not installed") from None
            # Its client would first look for CUDA and OpenCV, by other programs, and then for this.
            pipe = getattr(getattr(jtop, "service", None), "JTOP_PIPE", None)
            if pipe is not None and not os.path.exists(pipe):
                raise Missing(f"jtop.service is not active: no {pipe}")
            try:
                self._client: Any = jtop.jtop(interval=interval_s)
                self._client.start()
            except Exception as error:  # it raises what its transport does, besides its own
                raise Missing(_first_line(error)) from error
        self.total = "the sum of its rails"
        with contextlib.suppress(Exception):
            # Waits until its programs have ended: they must not run while idle power is measured.
            _ = self._client.board
        with contextlib.suppress(KeyError, TypeError):
            self.total = str(self._client.power["tot"]["name"])

    def read(self, sample: Sample) -> None:
        """Fill in power, temperatures, GPU, EMC, RAM, swap, fans and the power mode."""
        client = self._client
        try:
            alive = client.ok(spin=True)
        except Exception as error:
            raise Missing(f"jtop ended: {_first_line(error)}") from error
        if not alive:
            raise Missing("jtop.service no longer answers")
        for part in (_power, _temperatures, _gpu, _memory, _fans, _mode):
            # What a board or a version of jetson-stats does not have is not there.
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                part(client, sample)

    def close(self) -> None:
        """Leave the service to itself."""
        with contextlib.suppress(Exception):
            self._client.close()


@contextlib.contextmanager
def _start_method_kept() -> Iterator[None]:
    # Importing jtop sets how this whole process starts others.
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        if multiprocessing.get_start_method(allow_none=True) != before:
            multiprocessing.set_start_method(before, force=True)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    # "... is not active. Please run:", and the command below: what to do is in our documentation.
    return (
        text.splitlines()[0].partition(" Please")[0].rstrip(".") if text else type(error).__name__
    )


def _power(client: Any, sample: Sample) -> None:
    power = client.power
    for name, rail in power["rail"].items():
        sample.rails_w[name] = rail["power"] / 1000
    total = power["tot"]
    sample.power_w = total["power"] / 1000
    if "name" in total:
        sample.rails_w[total["name"]] = sample.power_w


def _temperatures(client: Any, sample: Sample) -> None:
    for name, zone in client.temperature.items():
        if zone.get("online", True) and zone["temp"] > _OFFLINE_C:
            sample.temperatures_c[name] = float(zone["temp"])


def _gpu(client: Any, sample: Sample) -> None:
    for index, gpu in enumerate(client.gpu.values()):
        name = f"gpu{index}" if index else "gpu"
        with contextlib.suppress(KeyError, TypeError):
            sample.loads_percent[name] = float(gpu["status"]["load"])
        with contextlib.suppress(KeyError, TypeError):
            sample.clocks_mhz[name] = gpu["freq"]["cur"] / 1000


def _memory(client: Any, sample: Sample) -> None:
    memory = client.memory
    ram, swap = memory["RAM"], memory["SWAP"]
    sample.memory_bytes["ram_used"] = ram["used"] * 1024
    sample.memory_bytes["ram_shared_with_gpu"] = ram.get("shared", 0) * 1024
    sample.memory_bytes["swap_used"] = swap["used"] * 1024
    if memory.get("EMC"):
        sample.loads_percent["emc"] = float(memory["EMC"]["val"])
        sample.clocks_mhz["emc"] = memory["EMC"]["cur"] / 1000


def _fans(client: Any, sample: Sample) -> None:
    for name, fan in client.fan.items():
        for index, speed in enumerate(fan.get("speed", ())):
            sample.fans_percent[f"{name}{index}" if index else name] = float(speed)
        for index, rpm in enumerate(fan.get("rpm", ())):
            sample.fans_rpm[f"{name}{index}" if index else name] = float(rpm)


def _mode(client: Any, sample: Sample) -> None:
    if client.nvpmodel is not None:
        sample.nvpmodel = str(client.nvpmodel.name)
