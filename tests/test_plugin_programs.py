"""llama.cpp's own programs with the plug-in. Slow: the plug-in is compiled for them first.

Give a llama.cpp source tree in REMOE_TEST_LLAMA_CPP, and in REMOE_TEST_LLAMA_BIN the folder of its
programs and libraries, if that is not below it. Several pairs, for several releases, are separated by
colons.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import plugged
import stock
import tiny_moe
from remoe_edge.files.models import shipped_model
from remoe_edge.plugin import compiler
from remoe_edge.plugin.environment import environment

pytestmark = pytest.mark.slow

TREES = [each for each in os.environ.get("REMOE_TEST_LLAMA_CPP", "").split(":") if each]
BINS = os.environ.get("REMOE_TEST_LLAMA_BIN", "").split(":")
WAIT_S = 600
QUESTION = "Once upon a time there was a little girl who"


class Programs:
    """Hold a llama.cpp's programs, and the plug-in compiled for them."""

    def __init__(self, tree: Path, at: Path | None, folder: Path) -> None:
        source = compiler.source_of(tree, at)
        compiler.compile_into(folder, source, print)
        self.folder, self.entry = source.ggml.folder, folder / "libremoe.so"

    def path(self, name: str) -> Path:
        """Find a program; skip the test without it."""
        path = self.folder / name
        if not path.is_file():
            pytest.skip(f"there is no {path}")
        return path

    def environment(self, settings: dict[str, str] | None) -> dict[str, str]:
        """Make a program's environment; with no settings, without the plug-in."""
        waiting = {**os.environ, **stock.ENVIRONMENT}
        if settings is None:
            return waiting
        return {**waiting, **environment(self.entry, None, {"status": "off", **settings}, waiting)}

    def output(self, name: str, *words: object, settings: dict[str, str] | None) -> str:
        """Run a program to its end and return what it prints."""
        done = subprocess.run(
            [str(self.path(name)), *map(str, words)], env=self.environment(settings),
            capture_output=True, text=True, errors="replace", timeout=WAIT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        if settings is not None:
            assert "a cache of" in plugged.said(done), done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module", params=range(max(1, len(TREES))), ids=lambda i: f"llama{i}")
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    if not TREES:
        pytest.skip("REMOE_TEST_LLAMA_CPP names no llama.cpp")
    at = BINS[request.param] if request.param < len(BINS) else ""
    folder = tmp_path_factory.mktemp("plug")
    return Programs(Path(TREES[request.param]), Path(at) if at else None, folder)


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


# --- a server ---


@contextmanager
def server(
    programs: Programs, model: Path, settings: dict[str, str] | None, *more: object
) -> Iterator[str]:
    """Run a llama-server on a free port; yield its address."""
    words = [programs.path("llama-server"), "-m", model, "--port", 0, "-t", 2, "-c", 1024, *more]
    process = subprocess.Popen(
        list(map(str, words)), env=programs.environment(settings), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(process.stdout or []))
    reading.start()
    try:
        end = time.monotonic() + WAIT_S
        while process.poll() is None and time.monotonic() < end:
            found = re.search(r"listening on (http://[\d.]+:[1-9]\d*)", "".join(lines))
            if found and _ready(found[1]):
                break
            time.sleep(0.1)
        assert found, "".join(lines)[-3000:]
        yield found[1]
        assert process.poll() is None, "".join(lines)[-3000:]
    finally:
        process.terminate()
        process.wait(WAIT_S)
        reading.join()


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, **body: Any) -> dict[str, Any]:
    """Ask for a completion; return the answer, or what was said against it as `error`."""
    data = json.dumps({"temperature": 0, "n_predict": 16, "cache_prompt": False, **body}).encode()
    request = urllib.request.Request(
        f"{address}/completion", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


@pytest.mark.parametrize("cache", ["100%", "30%", "0.001%"])
def test_probabilities_of_a_server(programs: Programs, cache: str) -> None:
    answers = []
    for settings in (None, {"cache": cache}):
        with server(programs, shipped_model(), settings, "-np", 1) as address:
            answer = ask(address, prompt=QUESTION, n_predict=128, n_probs=10)
            answers.append((answer["content"], answer["completion_probabilities"]))
    assert answers[0] == answers[1]


def test_four_users_at_once(programs: Programs) -> None:
    prompts = [f"{QUESTION} lived in house number {n}" for n in range(4)]
    with server(programs, shipped_model(), {"cache": "30%"}, "-np", 4) as address:
        answers: dict[int, dict[str, Any]] = {}

        def one(number: int) -> None:
            answers[number] = ask(address, prompt=prompts[number])

        threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(answers[number]["content"] for number in range(4))


def test_a_server_outlives_its_disk(programs: Programs, tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    path = tmp_path / "last.gguf"
    begin = plugged.experts_last(model, path)
    whole = path.read_bytes()
    prompts = [[token, token + 1, token + 2] for token in range(10, 40)]
    with server(programs, path, {"cache": "0.001%"}, "-np", 1) as address:
        right = ask(address, prompt=prompts[0])
        assert "error" not in right
        os.truncate(path, begin + 100)
        assert any("error" in ask(address, prompt=prompt) for prompt in prompts)
        with path.open("r+b") as file:
            file.seek(begin + 100)
            file.write(whole[begin + 100 :])
        assert ask(address, prompt=prompts[0])["content"] == right["content"]


def test_what_is_said_on_a_version_that_was_not_built(programs: Programs, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "remoe_edge.cli", "plugin", "run", "--", programs.path("llama-bench")],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    if done.returncode == 0:
        pytest.skip("the package's own plug-in fits these programs")
    assert "remoe-edge plugin build --llama-cpp" in done.stderr
