"""llama.cpp's own programs with the plug-in. Slow: the plug-in is compiled for them first.

llama_programs.py says where they come from.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llama_programs
from llama_programs import WAIT_S, Programs
from remoe_edge.files.models import shipped_model
from remoe_edge.plugin import builds, compiler, libraries

pytestmark = pytest.mark.slow

QUESTION = "Once upon a time there was a little girl who"


@pytest.fixture(scope="module", params=llama_programs.GIVEN, ids=lambda i: f"llama{i}")
def programs(request: pytest.FixtureRequest) -> Programs:
    return llama_programs.given(request.param)


@pytest.mark.parametrize("cache", ["100%", "30%", "0.001%"])
@pytest.mark.parametrize("threads", [1, 2])
def test_completion_says_the_same(programs: Programs, cache: str, threads: int) -> None:
    words = [
        "-m",
        shipped_model(),
        "-p",
        QUESTION,
        "-n",
        128,
        "--temp",
        0,
        "-t",
        threads,
        "-no-cnv",
    ]
    plain = programs.output("llama-completion", *words, settings=None)
    assert len(plain) > len(QUESTION)
    assert programs.output("llama-completion", *words, settings={"cache": cache}) == plain


@pytest.mark.parametrize("more", [["--no-repack"], ["-fa", "off"], ["-ub", "16"], ["-fit", "off"]])
def test_flags_of_the_program(programs: Programs, more: list[str]) -> None:
    words = [
        "-m",
        shipped_model(),
        "-p",
        QUESTION * 4,
        "-n",
        24,
        "--temp",
        0,
        "-t",
        2,
        "-no-cnv",
        *more,
    ]
    plain = programs.output("llama-completion", *words, settings=None)
    assert programs.output("llama-completion", *words, settings={"cache": "30%"}) == plain


def test_bench_runs(programs: Programs) -> None:
    words = ["-m", shipped_model(), "-p", 32, "-n", 16, "-t", 2, "-r", 1, "-o", "json"]
    found = json.loads(programs.output("llama-bench", *words, settings={"cache": "30%"}))
    assert [each["avg_ts"] > 0 for each in found] == [True, True]


def test_what_is_said_on_a_version_that_was_not_built(programs: Programs, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "remoe_edge.cli", "plugin", "run", "--", programs.path("llama-bench")],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    if done.returncode == 0:
        pytest.skip("the package's own plug-in fits these programs")
    assert "remoe-edge plugin build --llama-cpp" in done.stderr


def test_a_core_of_another_release_is_not_loaded(programs: Programs, tmp_path: Path) -> None:
    """Under this release's own name lies the core for the installed package: its structs are others."""
    ggml = libraries.ask(programs.folder / "libggml-base.so")
    package = libraries.of_package()
    if ggml.version == package.version:
        pytest.skip("these programs have the package's ggml")
    lies = tmp_path / "builds" / ggml.build
    lies.mkdir(parents=True)
    shutil.copy(builds.require_core(package, None, "llama-cpp-python"), lies / builds.CORE)
    entry = shutil.copy(builds.entry(None), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", compiler._LOAD, str(ggml.folder), entry],
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert ggml.version in done.stderr
    assert "remoe-edge plugin build --llama-cpp" in done.stderr
