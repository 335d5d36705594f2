"""What each back end makes of the files that it reads, on trees of two kinds of machine."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from recorded.trees import ORIN_NX, X86, change, plant
from remoe_edge.errors import InputError
from remoe_edge.machine import description
from remoe_edge.telemetry import Sample, Sampler
from remoe_edge.telemetry.chips import Chips
from remoe_edge.telemetry.disk import Disk
from remoe_edge.telemetry.pressure import Pressure
from remoe_edge.telemetry.process import Process
from remoe_edge.telemetry.processor import Processor
from remoe_edge.telemetry.rails import Rails
from remoe_edge.telemetry.ram import Ram
from remoe_edge.telemetry.rapl import Rapl
from remoe_edge.telemetry.sample import Missing, Source
from remoe_edge.telemetry.sampler import pause
from remoe_edge.telemetry.tegra import Tegra
from remoe_edge.telemetry.thermal import Thermal

SECONDS = 600


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    return plant(tmp_path, ORIN_NX)


@pytest.fixture
def x86(tmp_path: Path) -> Path:
    return plant(tmp_path, X86)


def read(source: Source, t_s: float = 0.0) -> Sample:
    sample = Sample(t_s)
    source.read(sample)
    return sample


# --- a Jetson without jtop ---


def test_the_input_rail_is_the_total(orin: Path) -> None:
    source = Rails(orin)
    assert source.total == "VDD_IN"
    sample = read(source)
    assert sample.rails_w == pytest.approx(
        {"VDD_IN": 10.144, "VDD_CPU_GPU_CV": 5.064, "VDD_SOC": 2.536}
    )
    assert sample.power_w == sample.rails_w["VDD_IN"]
    change(orin, "sys/class/hwmon/hwmon1/curr1_input", 3000)
    assert read(source).power_w == pytest.approx(15.216)


def test_without_an_input_rail_the_modules_rails_add_up(orin: Path) -> None:
    for channel, label in ((1, "VDD_GPU_SOC"), (2, "VDD_CPU_CV"), (3, "NC")):
        change(orin, f"sys/class/hwmon/hwmon1/in{channel}_label", label)
    source = Rails(orin)
    assert source.total == "VDD_GPU_SOC + VDD_CPU_CV"
    sample = read(source)
    assert set(sample.rails_w) == {"VDD_GPU_SOC", "VDD_CPU_CV"}
    assert sample.power_w == pytest.approx(15.208)


def test_a_sensor_that_sleeps_leaves_no_total(orin: Path) -> None:
    source = Rails(orin)
    change(orin, "sys/class/hwmon/hwmon1/curr1_input", "")
    sample = read(source)
    assert sample.power_w is None
    assert "VDD_IN" not in sample.rails_w
    assert "VDD_SOC" in sample.rails_w


def test_zones_fans_drive_and_throttling(orin: Path) -> None:
    assert read(Thermal(orin)).temperatures_c == {"cpu": 49.312, "gpu": 47.5, "tj": 50.187}
    sample = read(Chips(orin))
    assert sample.temperatures_c == {"nvme Composite": 47.85}
    assert sample.fans_percent == pytest.approx({"pwmfan": 20})
    assert sample.fans_rpm == {"pwm_tach": 1841}
    assert sample.throttle_events == {"over-current 1": 0, "over-current 3": 7}


def test_a_temperature_that_nothing_names_is_left_out(orin: Path) -> None:
    change(orin, "sys/class/hwmon/hwmon9/name", "somechip")
    change(orin, "sys/class/hwmon/hwmon9/temp1_input", 30000)
    assert read(Chips(orin)).temperatures_c == {"nvme Composite": 47.85}


def test_two_zones_of_one_name_are_both_kept(orin: Path) -> None:
    change(orin, "sys/class/thermal/thermal_zone1/type", "cpu-thermal")
    assert read(Thermal(orin)).temperatures_c == {"cpu": 49.312, "cpu 1": 47.5, "tj": 50.187}


def test_the_gpu_and_the_power_mode(orin: Path) -> None:
    source = Tegra(orin)
    sample = read(source)
    assert (sample.loads_percent["gpu"], sample.clocks_mhz["gpu"]) == (12.5, 305.9375)
    assert sample.nvpmodel == "25W"
    change(orin, "var/lib/nvpmodel/status", "pmode:0002")
    assert read(source).nvpmodel == "2"  # a mode that the configuration does not name


def test_a_sampler_on_a_jetson(orin: Path) -> None:
    with Sampler(root=orin, jtop=False) as sampler:
        assert sampler.power_source == "hwmon: VDD_IN"
        assert sampler.missing_line() is None
        sample = sampler.latest
    assert sample is not None
    told = sample.as_json()
    assert told["power_w"] == 10.144
    assert told["nvpmodel"] == "25W"
    assert told["clocks_mhz"] == {"cpu0": 1984.0, "cpu4": 729.6, "gpu": 305.938}
    assert told["memory_bytes"]["available"] == 9_000_000 * 1024


def test_the_machine_is_named(orin: Path) -> None:
    told = description.describe(orin)
    assert told["board"] == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert (told["l4t"], told["max_clock_mhz"]) == ("36.4.3", 1984.0)
    assert told["memory_bytes"] == 16_022_184 * 1024


# --- x86 ---


def test_rapl_counts_over_the_wrap(x86: Path) -> None:
    source = Rapl(x86)
    assert source.total == "package-0 + package-0/dram"
    first = read(source, 10.0)
    assert (first.energy_j, first.power_w) == (0.0, None)
    change(x86, "sys/class/powercap/intel-rapl:0/energy_uj", 8_671_150)  # 10 J on, past the end
    change(x86, "sys/class/powercap/intel-rapl:0:1/energy_uj", 7_000_000)
    change(x86, "sys/class/powercap/intel-rapl:1/energy_uj", 99_000_000)
    second = read(source, 14.0)
    assert second.rail_energy_j == pytest.approx(
        {"package-0": 10.0, "package-0/core": 0.0, "package-0/dram": 2.0, "psys": 90.0}
    )
    assert second.energy_j == pytest.approx(12.0)
    assert second.power_w == pytest.approx(3.0)


def test_rapl_that_may_not_be_read_says_how(x86: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Any, *args: Any) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Missing, match=r"as root, chmod a\+r .*/sys/class/powercap/\*/energy_uj"):
        Rapl(x86)


def test_a_part_is_no_total(x86: Path) -> None:
    source = Rails(x86)
    assert source.total is None
    sample = read(source)
    assert sample.rails_w == {"amdgpu slowPPT": 33.0}
    assert sample.power_w is None


def test_an_energy_counter_is_preferred(x86: Path) -> None:
    with Sampler(root=x86, jtop=False) as sampler:
        assert sampler.power_source == "rapl: package-0 + package-0/dram"
        start = sampler.edge()
        change(x86, "sys/class/powercap/intel-rapl:0:1/energy_uj", 8_000_000)
        energy = sampler.energy(start, sampler.edge())
    assert energy is not None
    assert energy.method == "counter"
    assert energy.joules == pytest.approx(3.0)
    assert sampler.latest is not None
    assert sampler.latest.rails_w == {"amdgpu slowPPT": 33.0}
    assert sampler.latest.temperatures_c == {"coretemp Package id 0": 61.0}  # not each core's


def test_clocks_of_a_virtual_machine_and_throttling(x86: Path) -> None:
    sample = read(Processor(x86))
    assert sample.clocks_mhz == {"cpu0": 2999.998}
    assert sample.throttle_events == {"cpu": 7}


# --- everywhere ---


def test_loads_are_shares_of_the_time_between(x86: Path) -> None:
    source = Processor(x86)
    assert read(source).loads_percent == {}
    change(x86, "proc/stat", "cpu  1095 50 350 8020 220 15 25 125 0 0\n")
    loads = read(source, 1.0).loads_percent
    assert loads == pytest.approx({"cpu": 77.5, "steal": 2.5, "iowait": 10.0})


def test_pressure_is_a_share_of_the_time_between(x86: Path) -> None:
    source = Pressure(x86)
    assert read(source, 5.0).pressures_percent == {}
    change(
        x86,
        "proc/pressure/memory",
        "some avg10=9 avg60=9 avg300=9 total=1500000\nfull avg10=9 avg60=9 avg300=9 total=600000\n",
    )
    change(x86, "proc/pressure/io", "some avg10=0 avg60=0 avg300=0 total=9000000\n")
    seen = read(source, 7.0).pressures_percent
    assert seen["memory_some"] == pytest.approx(25)
    assert seen["memory_full"] == pytest.approx(10)
    assert seen["io_some"] == 100  # a counter may be ahead of our clock
    assert seen["cpu_some"] == 0


def test_the_models_own_partition_is_counted(x86: Path) -> None:
    source = Disk(x86, os.makedev(259, 1))
    assert source.device == "nvme0n1p1"
    assert read(source, 1.0).disk_bytes == {"read": 0, "written": 0}
    change(
        x86,
        "proc/diskstats",
        " 259 0 nvme0n1 1 1 1 1 1 1 1 1 1 1 1\n"
        " 259 1 nvme0n1p1 80010 10 6408192 39000 91 5 728 45 0 30000 39045\n",
    )
    sample = read(source, 3.0)
    assert sample.disk_bytes == {"read": 4 << 20, "written": 4096}
    assert sample.disk_reads == 10
    assert sample.loads_percent["disk"] == pytest.approx(50)


def test_a_file_on_no_block_device(x86: Path) -> None:
    with pytest.raises(Missing, match="no block device"):
        Disk(x86, os.makedev(0, 42))


def test_memory_is_in_bytes(x86: Path) -> None:
    assert read(Ram(x86)).memory_bytes == {
        "total": 16_022_184 << 10,
        "available": 9_000_000 << 10,
        "page_cache": 7_012_880 << 10,
        "swap_used": 20_480 << 10,
    }


def test_this_process_is_followed() -> None:
    sample = read(Process(os.getpid()))
    assert sample.memory_bytes["rss"] > 1 << 20
    assert sample.faults["minor"] > 0
    with pytest.raises(Missing, match="no process"):
        Process(2**22 + 1)


@pytest.mark.parametrize(
    "make", [Rails, Rapl, Thermal, Chips, Tegra, Pressure, Processor, Ram], ids=lambda m: m.__name__
)
def test_where_nothing_is_each_says_so(make: Any, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no "):
        make(tmp_path)


# --- the sampler ---


def test_what_is_missing_is_one_line_and_no_failure(tmp_path: Path) -> None:
    with Sampler(tmp_path, root=tmp_path, jtop=False) as sampler:
        line = sampler.missing_line()
        assert sampler.sources == ["process"]
        assert sampler.measure_idle(SECONDS) is None  # at once
        assert sampler.energy(sampler.edge(), sampler.edge()) is None
    assert line is not None
    assert "\n" not in line
    for part in ("power (no INA3221", "no RAPL", "temperatures", "clocks", "pressure", "disk ("):
        assert part in line, line


def test_a_file_of_a_strange_form_costs_one_source_only(orin: Path) -> None:
    change(orin, "proc/pressure/io", "nobody knows what this is\n")
    with Sampler(root=orin, jtop=False) as sampler:
        assert "pressure" not in sampler.sources
        assert sampler.lost[0].startswith("telemetry goes on without pressure: ValueError")
        assert len(sampler.lost) == 1
        assert sampler.latest is not None
        assert sampler.latest.power_w == 10.144


def test_it_goes_on_in_its_own_thread_and_keeps_the_last(orin: Path) -> None:
    enough = threading.Event()
    seen: list[Sample] = []

    def take(sample: Sample) -> None:
        seen.append(sample)
        if len(seen) == 4:
            enough.set()

    with Sampler(root=orin, jtop=False, hz=10, keep=2, on_sample=take) as sampler:
        assert enough.wait(SECONDS)
    assert len(sampler.samples) == 2
    times = [sample.t_s for sample in seen]
    assert times == sorted(set(times))
    count = len(seen)
    sampler.stop()
    assert len(seen) == count


def test_a_listener_that_fails_ends_nothing_but_itself(orin: Path) -> None:
    def fail(sample: Sample) -> None:
        raise RuntimeError("no room")

    with Sampler(root=orin, jtop=False, on_sample=fail) as sampler:
        assert sampler.lost == ["telemetry: samples are no longer passed on: no room"]
        assert sampler.latest is not None


def test_looking_never_takes_more_than_a_hundredth_of_a_core() -> None:
    assert pause(0.1, 0.02, 0.0005) == pytest.approx(0.08)
    assert pause(0.1, 0.02, 0.01) == pytest.approx(0.99)  # 10 ms of every second
    assert pause(0.1, 5.0, 0.0) == 0


@pytest.mark.parametrize("hz", [0.5, 10.5, 0, -1, float("nan")])
def test_only_1_to_10_hz(hz: float) -> None:
    with pytest.raises(InputError, match="samples a second"):
        Sampler(hz=hz)


def test_no_file_stays_open(orin: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Sampler(root=orin, jtop=False):
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before
