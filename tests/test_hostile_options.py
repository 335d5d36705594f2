"""Every option of every command, as click knows them, with values that nobody means.

A command ends with status 0, 1 or 2; with 1 or 2 it has said one line of error, and never a traceback.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import random
from pathlib import Path
from typing import Any

import click
import pytest

import tiny_moe
from command_line import Outcome, run
from commands import commands
from remoe_edge.errors import RemoeError

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

# What a right command line would begin: compile, measure, start processes, serve. It is refused here.
BEGINS = (
    ("plugin.compiler", "compile_into"),
    ("machine.storage", "probe"),
    ("deploy.deploying", "deploy"),
    ("bench.session:Session", "run"),
    ("serve.listen:Listener", "run"),
    ("cli.top", "say"),  # where the metrics are, from then on
)


@pytest.fixture(autouse=True)
def nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise RemoeError("it has begun")

    def ended(worker: Any, *_: Any) -> None:
        worker.stop()

    for owner, name in BEGINS:
        if "serve" in owner and importlib.util.find_spec("uvicorn") is None:
            continue
        # A module that another test had imported anew is not where its package says.
        monkeypatch.setattr(pkgutil.resolve_name(f"remoe_edge.{owner}"), name, begun)
    for name in ("check_installed", "check_reachable"):
        monkeypatch.setattr(f"remoe_edge.deploy.ray_process.{name}", lambda *_: None)
    monkeypatch.setattr("remoe_edge.remote.worker.Worker.wait", ended)
    monkeypatch.setattr(os, "execvpe", begun)
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    Path("text").write_text("hello\n")


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


def test_options_beside_inputs_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with an option, or that there is no input, is said at once."""
    for name, arguments in cases(random.Random(1), 2):
        command = dict(commands())[name]
        inputs = [
            "nowhere" for each in command.params if isinstance(each, click.Argument)
        ] if arguments[0] != "--" else []  # fmt: skip
        if name == "top":
            inputs = ["--once"]
        check(run(capsys, *name.split(), *inputs, *arguments), (name, arguments))


# What makes each command do its work, but for an option of the sweep.
RIGHT = {
    "chat": ["-m", "m.gguf", "-p", "hi", "--raw", "-n", "1", "--ctx", "64", "-t", "1"],
    "serve": ["m.gguf", "--port", "0", "--ctx", "64", "-t", "1"],
    "trace": ["m.gguf", "-n", "1", "--prompts", "text", "--raw", "--ctx", "64", "-o", "o.trace"],
    "info": ["m.gguf"],
    "doctor": ["m.gguf"],
    "probe": ["m.gguf"],
    "simulate": ["a.trace"],
    "profile": ["a.trace", "-o", "o.profile"],
    "plan": ["m.gguf", "--memory", "1GiB", "--ctx", "64"],
    "convert extract": ["m.gguf", "-o", "o.gguf"],
    "convert merge": ["m.gguf", "text", "-o", "o.gguf"],
    "convert coarse": ["m.gguf", "-o", "o.gguf"],
    "convert dense": ["m.gguf", "-o", "o.gguf"],
    "convert routers": ["m.gguf", "--base", "m.gguf", "-o", "o.gguf"],
    "tune": ["m.gguf", "--data", "text", "-o", "o.safetensors", "--steps", "1"],
    "eval": ["m.gguf", "--data", "text"],
    "price": [
        "m.gguf",
        "--text",
        "text",
        "--window",
        "4",
        "--skip-cold",
        "0.4",
        "-t",
        "1",
        "-o",
        "o.json",
    ],
    "bench run": ["m.gguf", "--limit", "1", "-n", "1", "--warm", "0", "--probe-seconds", "0"],
    "bench compare": ["text", "text"],
    "bench again": ["text", "--models", "."],
    "worker": ["m.gguf", "--memory", "64MiB", "--listen", "127.0.0.1:0", "-t", "1"],
    "deploy up": ["m.gguf", "--slo", "tpot=1s,ttft=9s", "--ctx", "64", "-t", "1"],
    "plugin build": ["-o", "plugin"],
    "plugin env": [],
    "keys": ["keys"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_options_beside_a_model(capsys: pytest.CaptureFixture[str], name: str) -> None:
    model = tiny_moe.make(Path("m.gguf").absolute(), "qwen3moe", "Q8_0")
    before = model.read_bytes()
    recorded = ["-n", "2", "--prompts", "text", "--raw", "--ctx", "64", "-o", "a.trace"]
    assert run(capsys, "trace", "m.gguf", *recorded).code == 0
    for command, arguments in cases(random.Random(1), 100):
        if command == name and arguments[0] != "--":
            check(run(capsys, *name.split(), *RIGHT[name], *arguments), (name, arguments))
    assert model.read_bytes() == before


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e400"])
def test_what_is_no_finite_number_is_within_no_bounds(text: str) -> None:
    """NaN is neither below nor above anything: `top --interval nan` ended in a traceback."""
    numbers = [
        param.type
        for _, command in commands()
        for param in command.params
        if isinstance(param.type, click.types.FloatParamType)
    ]
    assert len(numbers) > 8
    for each in numbers:
        with pytest.raises(click.BadParameter):
            each.convert(text, None, None)
