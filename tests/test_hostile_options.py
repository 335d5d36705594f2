"""Every option of every command, as click knows them, with values that nobody means.

A command ends with status 0, 1 or 2; with 1 or 2 it has said one line of error, and never a traceback.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import click
import pytest

import tiny_moe
from command_line import Outcome, run
from commands import commands

TEXTS = (
    "", " ", "-1", "0", "%", "0%", "1000%", "nan%", "nan", "inf", "1e999GiB", "-5GiB", ",", "1,,2",
    "9" * 23, "\udcff", "x" * 5000, "\x1b[31m", "1" * 400,
    "plan:", "plan:-1ms", "plan:nan", "0x10", "\uff11\uff12",
    "file", "[]", "{}", "http://", ":", "localhost:", ":80", "[::1]:99999", "\u00b2", "1-", "*:9999",
)  # fmt: skip
WHOLE = (
    "",
    "-1",
    "0",
    "nan",
    "1.5",
    "1e3",
    "9" * 23,
    "-" + "9" * 20,
    "\u0661",
    "\u00b2",
    str(2**31),
    str(2**64),
)
REAL = ("", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "abc", "0x10", "1e300", "-0.0")
FILES = (
    "",
    "/dev/null",
    "/dev/full",
    "/nowhere/x",
    "x" * 5000,
    "/proc/self/mem",
    "\udcff",
    ".",
    "/",
    "text",
)


# These need no input to begin: they compile, measure for seconds, or start processes.
BEGIN_AT_ONCE = ("plugin", "deploy", "probe", "doctor")


def values(parameter: click.Parameter) -> tuple[str, ...]:
    kind = type(parameter.type).__name__
    if "Int" in kind:
        return WHOLE
    if "Float" in kind:
        return REAL
    if isinstance(parameter.type, click.Path) or kind == "Routers":
        return FILES
    return TEXTS


def check(outcome: Outcome, what: Any) -> None:
    assert outcome.code in (0, 1, 2), (what, outcome)
    assert "Traceback" not in outcome.err, (what, outcome)
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (outcome.code != 0), (what, outcome)


def cases(draw: random.Random, n: int) -> list[tuple[str, tuple[str, ...]]]:
    """(command, arguments that precede nothing) for each option, `n` values each."""
    made = []
    for name, command in commands():
        if name.split()[0] in BEGIN_AT_ONCE:
            continue
        for parameter in command.params:
            several = values(parameter)
            for value in draw.sample(several, min(n, len(several))):
                if isinstance(parameter, click.Argument):
                    made.append((name, ("--", value)))
                elif getattr(parameter, "is_flag", False):
                    made.append((name, (parameter.opts[-1],)))
                else:
                    made.append((name, (f"{parameter.opts[-1]}={value}",)))
    return made


def test_options_beside_inputs_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing begins: what is wrong with an option, or that there is no input, is said at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    Path("text").write_text("hello\n")
    for name, arguments in cases(random.Random(1), 2):
        command = dict(commands())[name]
        inputs = [
            "nowhere" for each in command.params if isinstance(each, click.Argument)
        ] if arguments[0] != "--" else []  # fmt: skip
        if name == "top":
            inputs = ["--once"]
        check(run(capsys, *name.split(), *inputs, *arguments), (name, arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["chat", "trace", "info", "plan", "convert extract", "convert merge"]
)
def test_options_beside_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    model = str(tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0"))
    Path("text").write_text("hello\n")
    base = {
        "chat": ["-m", model, "-p", "hi", "--raw", "-n", "1", "--ctx", "64"],
        "trace": [model, "-n", "1", "--prompts", "text", "--raw", "--ctx", "64", "-o", "o.trace"],
        "info": [model],
        "plan": [model, "--memory", "1GiB", "--ctx", "64"],
        "convert extract": [model, "-o", "o.gguf"],
        "convert merge": [model, "text", "-o", "o.gguf"],
    }[name]
    before = Path(model).read_bytes()
    for command, arguments in cases(random.Random(1), 100):
        if command == name and arguments[0] != "--":
            check(run(capsys, *name.split(), *base, *arguments), (name, arguments))
    assert Path(model).read_bytes() == before
