"""Telemetry files: what `Engine(telemetry=...)` and `chat --telemetry` write, however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import telemetry_overhead
import tiny_moe
from command_line import SECONDS, run, start
from recorded.trees import ORIN_NX, plant
from remoe_edge import Engine
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.errors import InputError
from remoe_edge.telemetry import Sampler
from remoe_edge.telemetry.recording import Recording

TOKEN_FIELDS = {
    "record", "answer", "index", "phase", "n_tokens", "t_s", "stall_ms", "ffn_ms", "hits", "misses",
    "bytes_read",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("recording") / "tiny.gguf", "qwen3moe", "Q4_0")


@pytest.fixture(scope="module")
def long_winded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    return tiny_moe.make(path, "qwen3moe", "Q4_0", n_vocab=8192)


def records(path: Path) -> list[dict[str, Any]]:
    """Read a file, every line of which must be whole."""
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def of(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in told if record["record"] == kind]


# --- the engine ---


def test_an_engine_writes_what_it_did(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Engine(model, cache="30%", telemetry=path, publish=False) as engine:
        for prompt in ("hello", "hello there"):
            "".join(engine.generate(prompt, temperature=0, max_tokens=6))
        answer = engine.answer
        n_prompt = answer.n_prompt
    told = records(path)
    assert told[0]["record"] == "header"
    assert told[-1]["record"] == "end"
    header = told[0]
    assert header["format"] == "remoe-edge-telemetry"
    assert header["engine"]["model"] == str(model)
    assert header["engine"]["policy"] == "reuse-biased"
    assert header["engine"]["budget_bytes"] > 0
    assert header["engine"]["settings"]["cache"] == "30%"
    assert header["machine"]["cpus"] == len(os.sched_getaffinity(0))
    assert set(header["sampling"]) == {"hz", "sources", "power_source", "missing", "idle"}
    assert of(told, "sample")[0]["memory_bytes"]["rss"] > 0

    first, second = of(told, "answer")
    tokens = [record for record in of(told, "token") if record["answer"] == 2]
    assert [record["phase"] for record in tokens] == ["prefill"] + ["decode"] * 5
    assert [record["index"] for record in tokens] == list(range(6))
    assert tokens[0]["n_tokens"] == n_prompt
    assert set(tokens[0]) == TOKEN_FIELDS | {"ttft_ms"}
    assert set(tokens[1]) == TOKEN_FIELDS | {"tpot_ms"}
    for name in ("hits", "misses", "bytes_read"):  # nothing is lost between the tokens
        assert sum(record[name] for record in tokens) == second[name] == getattr(answer, name)
    assert [record["tpot_ms"] for record in tokens[1:]] == pytest.approx(answer.token_ms, abs=1e-3)
    assert first["end_s"] <= tokens[0]["t_s"] <= second["end_s"]
    assert second["misses"] > 0


def test_records_change_no_token(model: Path, tmp_path: Path) -> None:
    texts = []
    for telemetry in (None, tmp_path / "run.jsonl"):
        with Engine(model, cache="30%", telemetry=telemetry) as engine:
            texts.append(list(engine.generate("hello", temperature=0, max_tokens=24)))
    assert texts[0] == texts[1]


def test_evaluating_is_watched_too(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Engine(model, cache="30%", telemetry=path) as engine:
        engine.evaluate([1, 2, 3])
        engine.evaluate([4], reset=False)
    told = of(records(path), "token")
    assert [(record["phase"], record["n_tokens"]) for record in told] == [
        ("prefill", 3),
        ("decode", 1),
    ]
    assert told[0]["misses"] > 0


def test_a_model_that_is_not_streamed_has_times_only(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Engine(model, stream=False, telemetry=path) as engine:
        "".join(engine.generate("hello", temperature=0, max_tokens=3))
    told = records(path)
    assert told[0]["engine"]["streamed"] is False
    assert {record["misses"] for record in of(told, "token")} == {0}
    assert all(record["tpot_ms"] > 0 for record in of(told, "token")[1:])


def test_a_load_that_fails_leaves_a_whole_file(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(InputError):
        Engine(model, cache="30%", policy="best", telemetry=path)
    assert not path.exists()  # what is wrong from the start is said before anything is made
    with pytest.raises(KeyboardInterrupt):
        Engine(model, telemetry=path, progress=interrupt)
    told = records(path)
    assert (told[0]["record"], told[0]["engine"], told[-1]["record"]) == ("header", {}, "end")


def interrupt(fraction: float) -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return True


def test_a_place_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"/no/such/run.jsonl: telemetry cannot be written: No such"
    ):
        Engine(model, telemetry=tmp_path / "no/such/run.jsonl")


# --- observers ---


class Failing:
    """Fail at the second step."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_load(self, facts: Mapping[str, Any]) -> None:
        self.told.append("load")

    def on_begin(self, n_prompt: int) -> None:
        self.told.append("begin")

    def on_step(self, step: Step) -> None:
        self.told.append("step")
        if self.told.count("step") == 2:
            raise RuntimeError("the wall is in the way")

    def on_answer(self, answer: AnswerStats) -> None:
        self.told.append("answer")

    def on_close(self) -> None:
        self.told.append("close")


def test_an_observer_that_fails_harms_nobody(model: Path) -> None:
    failing, other = Failing(), Failing()
    with Engine(model, telemetry=[failing], publish=False) as engine:
        text = "".join(engine.generate("hello", temperature=0, max_tokens=5))
        assert engine.answer.n_generated == 5
        assert failing.told == ["load", "begin", "step", "step", "close"]
        assert engine.notes[-1] == "failing ended: the wall is in the way"
        engine.add_observer(other)
        "".join(engine.generate("hello", temperature=0, max_tokens=1))
        engine.remove_observer(other)
        assert "".join(engine.generate("hello", temperature=0, max_tokens=5)) == text
    assert other.told == ["load", "begin", "step", "answer"]


# --- energy ---


def test_an_answer_knows_its_joules(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sampler = Sampler(model, root=plant(tmp_path / "tree", ORIN_NX), jtop=False)
    recording = Recording.start(path, sampler=sampler, idle_s=0.05)
    with Engine(model, telemetry=[recording], publish=False) as engine:
        "".join(engine.generate("hello", temperature=0, max_tokens=6))
        stats, line = engine.stats(), engine.answer.line(True)
    told = records(path)
    assert told[0]["sampling"]["power_source"] == "hwmon: VDD_IN"
    assert told[0]["sampling"]["idle"]["idle_w"] == pytest.approx(10.144)
    energy = of(told, "answer")[0]["energy"]
    assert stats["energy"] == energy
    assert energy["mean_power_w"] == pytest.approx(10.144)  # the tree's power stands still
    assert energy["net_energy_j"] == pytest.approx(0, abs=1e-3)
    assert energy["joules_per_token"] == pytest.approx(energy["energy_j"] / 6, abs=1e-4)
    assert energy["method"] == "trapezoid"
    assert 0 < energy["decode_energy_j"] < energy["energy_j"]
    assert energy["decode_joules_per_token"] == pytest.approx(
        energy["decode_energy_j"] / 5, abs=1e-4
    )
    assert f"{energy['joules_per_token']:.2f} J/token" in line


# --- the command ---


def test_chat_writes_the_same_records(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    ask = ("chat", "-m", model, "-p", "x", "--temp", "0", "-n", "5")
    outcome = run(capsys, *ask, "--telemetry", path, "--telemetry-hz", "10", "--cache", "30%")
    assert outcome.code == 0, outcome
    assert outcome.out == run(capsys, *ask).out
    told = records(path)
    assert told[0]["sampling"]["hz"] == 10
    (answer,) = of(told, "answer")
    assert len(of(told, "token")) == answer["n_generated"] > 1
    named = [line for line in outcome.err.splitlines() if line.startswith("telemetry does without")]
    assert len(named) <= 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--telemetry", "{tmp}/none/x.jsonl"), 1, "telemetry cannot be written"),
        (("--telemetry", "{tmp}"), 2, "is a directory"),
        (("--telemetry-hz", "11"), 2, "11"),
        (("--metrics", "70000"), 1, "'70000' is no [HOST:]PORT"),
        (("--metrics", "localhost"), 1, "'localhost' is no [HOST:]PORT"),
    ],
)
def test_options_that_cannot_be_met(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...],
    code: int, message: str,
) -> None:  # fmt: skip
    filled = [arg.format(tmp=tmp_path) for arg in args]
    outcome = run(capsys, "chat", "-m", model, "-p", "x", *filled)
    assert outcome.code == code, outcome
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_no_file_is_made_for_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    outcome = run(capsys, "chat", "-m", tmp_path / "no.gguf", "-p", "x", "--telemetry", path)
    assert "no model at" in outcome.error()
    assert not path.exists()


def test_a_full_disk_is_said_once_and_the_chat_goes_on(model: Path) -> None:
    command = [
        sys.executable, "-m", "remoe_edge.cli", "chat", "-m", str(model), "-p", "x", "--temp", "0",
        "-n", "6", "--telemetry", "/dev/full",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done
    assert done.stdout
    assert done.stderr.count("telemetry stops: /dev/full: No space left on device") == 1
    assert " tok/s" in done.stderr


def test_a_disk_that_fills_up_keeps_whole_lines(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [2500]

    def full(fd: int, data: bytes) -> int:
        if not data.lstrip().startswith(b"{") and room[0] > 0:
            return write(fd, data)
        part = data[: room[0]]
        room[0] -= len(part)
        if not part:
            raise OSError(28, "No space left on device")
        return write(fd, part)

    path, said = tmp_path / "run.jsonl", list[str]()
    monkeypatch.setattr("remoe_edge.telemetry.recording.os.write", full)
    recording = Recording.start(path, model=model, note=said.append)
    with Engine(model, telemetry=[recording], publish=False) as engine:
        "".join(engine.generate("hello", temperature=0, max_tokens=20))
        assert engine.answer.n_generated == 20
    stopped = [line for line in said if "telemetry stops" in line]
    assert stopped == [f"telemetry stops: {path}: No space left on device"]
    told = records(path)
    assert told[0]["record"] == "header"
    assert told[-1]["record"] != "end"


def test_ctrl_c_and_a_kill_leave_a_usable_file(long_winded: Path, tmp_path: Path) -> None:
    for number, last in ((signal.SIGINT, "end"), (signal.SIGKILL, None)):
        path = tmp_path / f"{number}.jsonl"
        args = ("chat", "-m", long_winded, "-p", "x", "--temp", "0", "-n", "2000", "--ctx", "2048")
        with start(*args, "--telemetry", path, state=tmp_path) as running:
            running.wait_for_output(20)
            running.process.send_signal(number)
            running.end()
        told = records(path)
        assert told[0]["record"] == "header"
        assert len(of(told, "token")) >= 2
        if last is not None:
            assert told[-1]["record"] == last
            assert of(told, "answer")[0]["stop"] == "cancelled"


# --- the tool that measures the overhead ---


def test_the_overhead_tool_compares_like_with_like(
    long_winded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "overhead.json"
    monkeypatch.setattr(sys, "argv", ["telemetry_overhead.py", str(long_winded), "--tokens", "8",
                                      "--rounds", "2", "-o", str(path)])  # fmt: skip
    telemetry_overhead.main()
    told = json.loads(path.read_text())
    assert {arm: len(each) for arm, each in told["tpot_ms"].items()} == {"off": 2, "on": 2}
    assert told["misses_per_token"] > 0
    assert told["budget_bytes"] > 0


def test_the_overhead_is_the_median_of_pairs() -> None:
    told = telemetry_overhead.overhead([100.0, 200.0, 100.0], [101.0, 204.0, 103.0])
    assert told == {"median_percent": 2.0, "low_percent": 1.0, "high_percent": 3.0}
