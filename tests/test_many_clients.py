"""The tools that try the server with many clients, in their short forms."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import tiny_moe

pytest.importorskip("starlette", reason="no starlette: pip install 'remoe-edge[serve]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'remoe-edge[serve]'")

from many_clients.gain import rows as gain_rows
from many_clients.record import row, tell
from many_clients.server import serving
from many_clients.soak import Soak, answers_alone, growth, prompts, same
from many_clients.throughput import Run, rows

TOOLS = Path(__file__).resolve().parents[1] / "tools" / "many_clients"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("many") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.mark.parametrize("groups", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_token_is_the_one_made_alone(model: Path, groups: bool) -> None:
    asked = prompts(6, seed=3)
    assert len(set(map(len, asked))) > 3
    alone = answers_alone(model, asked, 12, "50%", 1024, 1)
    options = [
        "--cache", "50%", "--ctx", "1024", "-t", "1", "--parallel", "3", "--queue", "32",
        "--together", "auto" if groups else "1",
    ]  # fmt: skip
    with serving(model, options) as server:
        soak = Soak(server, asked, alone, compared=not groups)
        memory = soak.run(8, 3600, most=4)
        assert soak.all_free()
    # A random model's answers need not differ from the first token on: in groups only complaints
    # about failures count here.
    failed = [line for line in soak.wrong if not groups or "nearer" not in line]
    assert failed == []
    assert soak.counts.total() == 32
    assert memory


def test_a_token_of_anothers_answer_is_seen() -> None:
    assert same(["a", "b", "c"], ["a", "b", "x"]) == 2
    assert growth([100, 100, 100, 100, 102, 101, 100, 100, 100]) <= 0.02
    assert growth([50, 80, *range(100, 200)]) > 0.4


def test_the_table_tells_what_each_schedule_has_of_one_client_alone() -> None:
    runs = [
        Run("alone", 1, tokens=100, seconds=10, first_token_s=[0.5]),
        Run(
            "32", 4, tokens=90, seconds=10, longest_pause_s=2.5, first_token_s=[1, 3],
            bytes_read=90 << 20,
        ),
    ]  # fmt: skip
    alone, slices = rows(runs)
    assert (alone["times_alone"], slices["times_alone"]) == (1, 0.9)
    assert (slices["longest_pause_s"], slices["ttft_max_s"]) == (2.5, 3)
    assert slices["mib_per_token"] == 1
    slow = Run("auto:5s", 4, tokens=70, seconds=10)
    _, bounded = rows([runs[0], slow])
    assert (bounded["times_alone"], bounded["bound"], bounded["held"]) == (0.7, ">= 0.8", False)


def test_a_table_is_written_as_it_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [row("growth", 0.01234567, bound="<= 0.02"), row("requests", 7)]
    assert [each["held"] for each in found] == [True, None]
    path = tmp_path / "r.json"
    assert tell(Namespace(rounds=1), found, path, more=[1])
    record = json.loads(path.read_text())
    assert (record["rows"], record["settings"], record["more"]) == (found, {"rounds": "1"}, [1])
    assert record["machine"]
    assert not tell(Namespace(), [row("growth", 0.03, bound="<= 0.02")], None)
    assert capsys.readouterr().out.splitlines() == [
        "what      value   unit  bound    held",
        "growth    0.0123        <= 0.02  yes",
        "requests  7",
        "what    value  unit  bound    held",
        "growth  0.03         <= 0.02  NO",
    ]


def test_a_gain_is_against_one_client_of_the_same_server() -> None:
    rates = {
        ("ours", 1): [10.0, 12.0, 11.0], ("ours", 8): [33.0], ("llama.cpp", 1): [20.0],
        ("llama.cpp", 8): [50.0],
    }  # fmt: skip
    one, eight = gain_rows(rates)
    assert (one["ours gain"], one["bound"]) == (1, "")
    assert (eight["ours gain"], eight["llama.cpp gain"]) == (3, 2.5)
    assert (eight["bound"], eight["held"]) == (">= 2.5", True)


@pytest.mark.slow
def test_the_benchmarks_run(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "r.json"
    command = [
        sys.executable, TOOLS / "throughput.py", model, "--clients", "2", "--seconds", "1",
        "--rounds", "1", "--tokens", "8", "--ctx", "512", "-t", "1", "-o", record, "--whole",
    ]  # fmt: skip
    subprocess.run(command, check=False)  # so short a time keeps no bound
    found = json.loads(record.read_text())["rows"]
    names = [row["schedule"] for row in found]
    assert names == [
        "alone", "turns", "batch", "32", "auto:5s", "auto:60s", "whole alone", "whole batch",
    ]  # fmt: skip
    assert all(row["tokens_per_s"] > 0 for row in found)
    command = [
        sys.executable, TOOLS / "latency.py", "--rounds", "1", "--tokens", "8", "-t", "1",
        "--characters", "2000",
    ]  # fmt: skip
    out = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    assert "TPOT p50, served to alone" in out
    assert "TTFT, next to first" in out
    command = [
        sys.executable, TOOLS / "gain.py", model, "--clients", "2", "--rounds", "1", "--requests", "1",
        "--tokens", "8", "-t", "1", "-o", record,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    assert [each["clients"] for each in json.loads(record.read_text())["rows"]] == [1, 2]
    command = [
        sys.executable, TOOLS / "soak.py", model, "--clients", "4", "--minutes", "0.05", "--parallel",
        "2", "--prompts", "4", "--tokens", "8", "-t", "1", "-o", record,
    ]  # fmt: skip
    subprocess.run(command, check=False)  # so short a time tells nothing of memory
    found = {each["what"]: each for each in json.loads(record.read_text())["rows"]}
    for what in ("wrong or failed", "places not given back", "deaths of the server"):
        assert found[what]["held"], found
