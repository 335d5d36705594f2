"""The jtop back end: against a stand-in of its API always, and against its own client where installed.

Neither is a Jetson: that the service's figures are what the board draws remains unproven here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recorded.jtop_orin_nx import TICKS
from remoe_edge.telemetry import Sample, Sampler
from remoe_edge.telemetry import sampler as sampling
from remoe_edge.telemetry.jetson import Jetson
from remoe_edge.telemetry.sample import Missing

SECONDS = 600


def expect_tick(sample: Sample, tick: dict[str, Any]) -> None:
    """Insist that a sample says what a tick said, in our units."""
    power = tick["power"]
    assert sample.power_w == pytest.approx(power["tot"]["power"] / 1000)
    assert sample.rails_w == pytest.approx(
        {
            "VDD_IN": power["tot"]["power"] / 1000,
            "VDD_CPU_GPU_CV": power["rail"]["VDD_CPU_GPU_CV"]["power"] / 1000,
            "VDD_SOC": power["rail"]["VDD_SOC"]["power"] / 1000,
        }
    )
    assert set(sample.temperatures_c) == {"cpu", "soc0", "tj"}  # not the GPU's, which sleeps
    assert sample.temperatures_c["tj"] == tick["temperature"]["tj"]["temp"]
    assert sample.loads_percent["gpu"] == tick["gpu"]["gpu"]["status"]["load"]
    assert sample.loads_percent["emc"] == tick["mem"]["EMC"]["val"]
    assert sample.clocks_mhz["gpu"] == pytest.approx(305.937)
    assert sample.clocks_mhz["emc"] == 2133
    assert sample.memory_bytes["ram_used"] == tick["mem"]["RAM"]["used"] * 1024
    assert sample.memory_bytes["ram_shared_with_gpu"] == 93_184 * 1024
    assert sample.memory_bytes["swap_used"] == 20_480 * 1024
    assert sample.fans_percent == {"pwmfan": 33.3}
    assert sample.fans_rpm == {"pwmfan": 1841}
    assert sample.nvpmodel == "25W"


# --- a stand-in of the API ---


class Client:
    """Offer what `jtop.jtop` offers, from ticks instead of a service."""

    fails: Exception | None = None
    tick = 0

    def __init__(self, interval: float) -> None:
        self.interval, self.closed = interval, False

    def start(self) -> None:
        if self.fails:
            raise self.fails

    def ok(self, spin: bool = False) -> bool:
        assert spin, "it would wait for the next tick"
        if type(self).fails:
            raise type(self).fails
        return not self.closed

    def close(self) -> None:
        self.closed = True

    def __getattr__(self, name: str) -> Any:
        tick = TICKS[type(self).tick]
        if name == "nvpmodel":
            return types.SimpleNamespace(**tick["nvp"]["model"])
        return tick[{"memory": "mem"}.get(name, name)]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    class Fresh(Client):
        pass

    module = types.ModuleType("jtop")
    module.jtop = Fresh  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)
    return Fresh


def test_every_tick_is_understood(api: type[Client]) -> None:
    source = Jetson(0.5)
    assert source.total == "VDD_IN"
    for index, tick in enumerate(TICKS):
        api.tick = index
        sample = Sample(float(index))
        source.read(sample)
        expect_tick(sample, tick)


def test_what_a_board_does_not_have_is_left_out(
    api: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {"power": {}, "temperature": {}, "gpu": {}, "fan": {}, "nvp": {"model": {}}}
    memory = {"RAM": {"used": 1024}, "SWAP": {"used": 0}}
    monkeypatch.setattr(sys.modules[__name__], "TICKS", ({**bare, "mem": memory},))
    sample = Sample(0.0)
    Jetson(0.5).read(sample)
    assert sample.as_json() == {
        "t_s": 0.0,
        "memory_bytes": {"ram_used": 1 << 20, "ram_shared_with_gpu": 0, "swap_used": 0},
    }


def test_without_a_service_it_says_so_in_a_line(api: type[Client]) -> None:
    api.fails = RuntimeError("The jtop.service is not active. Please run:\nsudo jtop --install")
    with pytest.raises(Missing, match="^The jtop.service is not active$"):
        Jetson(0.5)


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(Missing, match="^jtop is not installed$"):
        Jetson(0.5)


def test_a_service_that_never_answers_does_not_hold_the_sampler(
    api: type[Client], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    never = threading.Event()
    monkeypatch.setattr(api, "start", lambda self: never.wait(SECONDS))
    monkeypatch.setattr(sampling, "_JTOP_ANSWER_S", 0.05)
    with Sampler(root=tmp_path) as sampler:
        said = sampler.missing.get("jtop")
        never.set()
    assert said == "jtop.service does not answer within 0.05 s"


def test_power_comes_from_jtop_and_not_twice(api: type[Client], tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon1"
    chip.mkdir(parents=True)
    for name, text in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", "5000"),
                       ("curr1_input", "1000")):  # fmt: skip
        (chip / name).write_text(text)
    with Sampler(root=tmp_path) as sampler:
        assert sampler.power_source == "jtop: VDD_IN"
        assert "hwmon" not in sampler.sources
        start = sampler.edge()
        assert sampler.energy(start, sampler.edge()) is not None
        api.fails = ConnectionResetError("gone")  # the service ends: the kernel's own files
        sampler.edge()
        assert sampler.lost == ["telemetry goes on without jtop: jtop ended: gone"]
        assert sampler.power_source == "hwmon: VDD_IN"
        end = sampler.edge()
        assert sampler.energy(start, end) is None  # no interval holds some of both
        assert sampler.energy(end, sampler.edge()) is not None
    assert sampler.lost == ["telemetry goes on without jtop: jtop ended: gone"]


# --- jetson-stats' own client, over its own socket protocol ---


@contextlib.contextmanager
def service(socket: Path) -> Iterator[subprocess.Popen[str]]:
    """Run our stand-in of jtop.service, reachable at `socket`."""
    import jtop
    from jtop.core.common import get_key

    here = Path(__file__).resolve().parent
    command = [sys.executable, here / "jtop_service.py", socket, get_key(), jtop.__version__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if importlib.util.find_spec("jtop") is None:
        pytest.skip("jetson-stats is not installed: pip install 'remoe-edge[jetson]'")
    before = multiprocessing.get_start_method(allow_none=True)
    import jtop.service

    multiprocessing.set_start_method(before, force=True)
    with tempfile.TemporaryDirectory() as folder:  # a socket's path may not be long
        path = Path(folder) / "jtop.sock"
        monkeypatch.setattr(jtop.service, "JTOP_PIPE", str(path))
        yield path


def test_a_session_played_to_its_own_client(socket: Path, tmp_path: Path) -> None:
    last = TICKS[-1]["power"]["tot"]["power"] / 1000
    reached, lost = threading.Event(), threading.Event()

    def look(sample: Sample) -> None:
        if sample.power_w == last:
            reached.set()
        if sample.power_w is None:
            lost.set()

    with service(socket) as process, Sampler(root=tmp_path, hz=10, on_sample=look) as sampler:
        assert sampler.power_source == "jtop: VDD_IN", sampler.missing
        assert reached.wait(SECONDS)
        seen = next(each for each in sampler.samples if each.power_w == last)
        expect_tick(seen, TICKS[-1])
        start = sampler.samples[0].t_s
        energy = sampler.energy(start, sampler.edge())
        assert energy is not None
        assert (energy.method, energy.source) == ("trapezoid", "jtop: VDD_IN")
        first = TICKS[0]["power"]["tot"]["power"] / 1000
        assert first <= energy.joules / energy.seconds <= last
        process.kill()
        assert lost.wait(SECONDS)
        assert len(sampler.lost) == 1
        assert sampler.lost[0].startswith("telemetry goes on without jtop: ")


def test_no_service_and_the_process_start_method_are_left_alone(socket: Path) -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    with pytest.raises(Missing, match=r"jtop\.service is not active"):
        Jetson(0.5)
    assert multiprocessing.get_start_method(allow_none=True) == before
    assert not socket.exists()
