"""Energy in a bench, by a counter of a tree of files that stands in for a machine's."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from command_line import run
from recorded.trees import ORIN_NX, X86, plant
from remoe_edge.bench.power import PowerMeter
from remoe_edge.bench.power_modes import Board, at_each_mode
from remoe_edge.errors import UnsupportedError
from remoe_edge.machine.power_mode import power_mode
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


# --- power modes ---

NVPMODEL = """#!/bin/sh
# Stands in for NVIDIA's: keeps the mode in a file, and wants a reboot for mode 2.
root=$(dirname "$0")/../..
[ "$1" = -m ] || exit 2
echo "$2" >> "$root/asked"
if [ "$2" = 2 ]; then
  echo "NVPM WARN: Reboot required for changing to this power mode: 2"
  echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
  read answer || echo "NVPM ERROR: mode was not changed"
  exit 0
fi
printf 'pmode:%04d\\n' "$2" > "$root/var/lib/nvpmodel/status"
"""
CONF = (
    "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=10W >\n"
    "< POWER_MODEL ID=2 NAME=15W >\n< POWER_MODEL ID=3 NAME=25W >\n"
)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    plant(tmp_path, {**ORIN_NX, "etc/nvpmodel.conf": CONF, "usr/sbin/nvpmodel": NVPMODEL})
    (tmp_path / "usr/sbin/nvpmodel").chmod(0o755)
    return Board(tmp_path, settle_s=0)


def record(tpot_ms: float, joules: float | None) -> dict[str, Any]:
    figures = {
        "tpot_ms": {"median": tpot_ms},
        "tokens_per_s": {"median": 1000 / tpot_ms},
        "joules_per_token": joules,
    }
    return {"summary": {"stream:lru": figures}, "machine": {"clocks_held": True}}


def test_each_mode_is_measured_and_the_one_found_is_set_again(board: Board) -> None:
    costs = {"MAXN": record(100, 2.0), "10W": record(250, 1.25), "25W": record(125, None)}
    said: list[str] = []
    kept: list[dict[str, Any]] = []

    def measure() -> dict[str, Any]:
        return costs[power_mode(board.root).name or ""]

    found = at_each_mode(board, measure, said.append, kept.append)
    assert list(found.records) == ["MAXN", "10W", "25W"]
    assert power_mode(board.root).name == "25W"
    assert [(row["mode"], row["tokens_per_joule"], row["decode_w"]) for row in found.rows()] == [
        ("MAXN", 0.5, 20.0), ("10W", 0.8, 5.0), ("25W", None, None),
    ]  # fmt: skip
    assert "did not take effect: NVPM ERROR: mode was not changed" in found.left_out["15W"]
    assert [len(each["rows"]) for each in kept] == [1, 2, 3]
    assert any("15W is left out" in line for line in said)
    shown = io.StringIO()
    Console(file=shown, width=120).print(found.table())
    lines = {
        line.split()[0]: line.split() for line in shown.getvalue().splitlines() if line.split()
    }
    assert lines["10W"] == ["10W", "stream:lru", "250.0", "4.00", "5.00", "1.25", "0.800"]
    assert lines["25W"][-3:] == ["-", "-", "-"]


def test_a_bench_that_fails_leaves_the_mode_as_it_was(board: Board) -> None:
    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at_each_mode(board, fail, lambda line: None)
    assert power_mode(board.root).name == "25W"
    assert (board.root / "asked").read_text().split() == ["0", "3"]


def test_a_board_that_refuses_every_mode_is_one_line(board: Board) -> None:
    (board.root / "etc/nvpmodel.conf").write_text("< POWER_MODEL ID=2 NAME=15W >\n")
    with pytest.raises(UnsupportedError, match="nvpmodel -m 2 did not take effect"):
        at_each_mode(board, lambda: record(1, 1), lambda line: None)


def test_without_modes_power_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnsupportedError, match="no nvpmodel"):
        Board(tmp_path).check()
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    if not Path("/usr/sbin/nvpmodel").exists():
        assert "no nvpmodel with modes here" in run(capsys, "bench", model, "--power").error()
    assert "take one record" in run(capsys, "bench", model, "--power", "--csv", "x.csv").error()
