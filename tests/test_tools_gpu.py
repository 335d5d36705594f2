"""Steps of a measurement on a lent GPU: each has its end, and what was measured is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gpu.measure import Run
from gpu.step import run_step


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", script]


def test_the_last_line_is_the_result() -> None:
    found = run_step(python("""print("so far"); print('{"gpus": 1}')"""), 600)
    assert found["status"] == 0
    assert found["gpus"] == 1
    assert "said" not in found


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("print('3 passed')", 0, "3 passed"),
        ("import sys; print(1); sys.exit('a fault')", 1, "a fault"),
        ("import os; os.kill(os.getpid(), 9)", -9, None),
    ],
)
def test_a_step_without_a_result_says_what_it_said(
    script: str, status: int, said: str | None
) -> None:
    found = run_step(python(script), 600)
    assert found["status"] == status
    assert (found["said"] or [None])[-1] == said


def test_what_a_step_started_ends_with_it() -> None:
    # Both hold the pipe that is read to its end: the call comes back once both have ended.
    found = run_step(["sh", "-c", "sleep 3600 & wait"], 0.3)
    assert found["status"] == "not finished"
    assert found["allowed_s"] == 0.3


def test_what_was_measured_is_kept_after_each_step(tmp_path: Path) -> None:
    run = Run(tmp_path / "gpu.json", minutes=60)
    assert json.loads(run.output.read_text())["steps"] == {}
    run.step("one", python("print('{}')"), 600)
    run.step("two", python("raise SystemExit(3)"), 600)
    steps = json.loads(run.output.read_text())["steps"]
    assert {name: step["status"] for name, step in steps.items()} == {"one": 0, "two": 3}
    assert list(tmp_path.iterdir()) == [run.output]
