"""Programs of a llama.cpp, the plug-in compiled for them, and a llama-server to ask.

    programs = Programs(tree, None)
    with server(programs, model, {"cache": "30%"}) as address:
        ask(address, prompt=[5, 6, 7])["content"]

Tests take them from the llama.cpp source tree that REMOE_TEST_LLAMA_CPP names, and from
REMOE_TEST_LLAMA_BIN its programs and libraries, if they are not below it. Several, for several releases,
are separated by colons. The plug-in is compiled for each, unless `remoe-edge plugin build -o` has put it
into the folder REMOE_TEST_PLUGIN.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
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
from remoe_edge.plugin import builds, compiler
from remoe_edge.plugin.environment import environment

WAIT_S = 600
_TREES = [each for each in os.environ.get("REMOE_TEST_LLAMA_CPP", "").split(":") if each]
_BINS = os.environ.get("REMOE_TEST_LLAMA_BIN", "").split(":")
GIVEN = range(max(1, len(_TREES)))


@functools.cache
def given(number: int) -> Programs:
    """Compile the plug-in for that llama.cpp, once for all tests; skip the test without one."""
    if not _TREES:
        pytest.skip("REMOE_TEST_LLAMA_CPP names no llama.cpp")
    at = _BINS[number] if number < len(_BINS) else ""
    return Programs(Path(_TREES[number]), Path(at) if at else None)


class Programs:
    """Hold a llama.cpp's programs, and the plug-in compiled for them."""

    def __init__(self, tree: Path, at: Path | None) -> None:
        source = compiler.source_of(tree, at)
        kept = Path(os.environ.get("REMOE_TEST_PLUGIN") or "/nowhere")
        if not (kept / "builds" / source.ggml.build / builds.CORE).is_file():
            self._plugin = tempfile.TemporaryDirectory(prefix="plugin-")
            kept = Path(self._plugin.name)
            compiler.compile_into(kept, source, print)
        self.folder, self.entry = source.ggml.folder, kept / builds.ENTRY

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


@contextmanager
def server(
    programs: Programs, model: Path | None, settings: dict[str, str] | None, *more: object
) -> Iterator[str]:
    """Run a llama-server, with a model or as a router; yield its address."""
    with serving(programs, model, settings, *more) as (_, address):
        yield address


@contextmanager
def serving(
    programs: Programs, model: Path | None, settings: dict[str, str] | None, *more: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a llama-server on a free port; once it is ready, yield its process and address."""
    chosen = [] if model is None else ["-m", model]
    words = [programs.path("llama-server"), *chosen, "--port", 0, "-t", 2, "-c", 1024, *more]
    process = subprocess.Popen(
        list(map(str, words)), env=programs.environment(settings), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(process.stdout or []))
    reading.start()
    found = None
    try:
        end = time.monotonic() + WAIT_S
        while process.poll() is None and time.monotonic() < end:
            found = re.search(r"listening on (http://[\d.]+:[1-9]\d*)", "".join(lines))
            if found and _ready(found[1]):
                break
            time.sleep(0.1)
        assert found, "".join(lines)[-3000:]
        yield process, found[1]
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
    chosen = {"temperature": 0, "n_predict": 16, "cache_prompt": False, **body}
    return dict(post(f"{address}/completion", chosen))


def post(address: str, body: Any) -> Any:
    """Send a request with a body; return what is answered, an error too."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def get(address: str) -> str:
    """Fetch a page."""
    with urllib.request.urlopen(address, timeout=WAIT_S) as answer:
        return str(answer.read().decode())


def probabilities(programs: Programs, path: Path, settings: dict[str, str] | None) -> list[Any]:
    """Ask a tiny model for the matrix' tokens, and of each for the logarithms of all probabilities."""
    with server(programs, path, settings, "-np", 1) as address:
        body = {
            "n_predict": plugged.N_GREEDY,
            "n_probs": tiny_moe.N_VOCAB,
            "ignore_eos": True,
            # Of tokens that end within a character, the server tells nothing: only ASCII is written.
            "logit_bias": [[byte, False] for byte in range(128, 256)],
        }
        answer = ask(address, prompt=plugged.PROMPT, **body)
        return [
            (each["id"], [(other["id"], other["logprob"]) for other in each["top_logprobs"]])
            for each in answer["completion_probabilities"]
        ]
