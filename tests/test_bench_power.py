"""Energy in a bench, by a counter of a tree of files that stands in for a machine's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from recorded.trees import X86, plant
from remoe_edge.bench.power import PowerMeter
from remoe_edge.telemetry import Sampler

COUNTER = "sys/class/powercap/intel-rapl:0/energy_uj"


def test_joules_of_a_run_and_of_its_decoding(tmp_path: Path) -> None:
    plant(tmp_path, X86)
    counter = tmp_path / COUNTER
    start = int(counter.read_text())
    meter = PowerMeter(Sampler(root=tmp_path, hz=10, jtop=False), idle_seconds=0.3)
    try:
        about = meter.about()
        assert about["source"].startswith("rapl: ")
        assert about["idle"]["idle_w"] == 0  # the counter stood still
        meter.start()
        first = time.perf_counter()
        counter.write_text(str(start + 5_000_000))
        time.sleep(0.3)
        last = time.perf_counter()
        found = meter.stop([(first, last)], 4)
    finally:
        meter.close()
    assert found["energy_joules"] == pytest.approx(5, abs=1e-3)
    # All of it came at the beginning of decoding, to within one reading.
    assert 0 < found["joules_per_token"] <= 1.2501
    assert found["net_joules_per_token"] == found["joules_per_token"]
    assert found["watts"]


def test_without_a_sensor_there_is_no_number(tmp_path: Path) -> None:
    meter = PowerMeter(Sampler(root=tmp_path, jtop=False), idle_seconds=1000)
    try:
        meter.start()
        found = meter.stop([(1.0, 2.0)], 4)
    finally:
        meter.close()
    assert set(found.values()) == {None}
    assert meter.about()["source"] is None
    assert "power" in meter.about()["missing"]
