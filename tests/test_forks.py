"""An engine in a forked child, a new one there, and other ways into another process."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from engines import CALLS, GREEDY, PROMPT, run_script
from remoe_edge import Engine, InputError, UnsupportedError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("life") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    with Engine(model, cache="50%", n_ctx=256, threads=2) as opened:
        yield opened


def test_an_engine_cannot_be_copied(engine: Engine) -> None:
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="another process"):
            make(engine)


def in_child(do: Callable[[], str], *, ends: Callable[[int], None] = os._exit) -> dict[str, Any]:
    """Run in a forked child; return what it says and how it ended. A hang fails the test."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = do()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writes, said.encode())
        ends(0)
    os.close(writes)
    for _ in range(6000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with os.fdopen(reads) as pipe:
                return {"said": pipe.read(), "status": os.waitstatus_to_exitcode(status)}
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


@pytest.mark.parametrize("io", ["auto", "pread"])
def test_a_forked_child_is_told(model: Path, io: str) -> None:
    with Engine(model, cache="50%", io=io, threads=2) as engine:
        alone = engine.generate(PROMPT, **GREEDY).read()
        begun = engine.generate(PROMPT, **GREEDY)
        text = next(begun)

        def every_call() -> str:
            said = []
            calls: list[Callable[[], Any]] = [
                lambda call=call: call(engine) for call in CALLS.values()
            ]
            for call in (*calls, lambda: next(begun)):
                try:
                    call()
                except UnsupportedError as error:
                    said.append("fork" in str(error))
            engine.close()
            begun.close()
            return json.dumps(said)

        child = in_child(every_call)
        assert child["status"] == 0
        assert json.loads(child["said"]) == [True] * (len(CALLS) + 1)
        assert text + "".join(begun) == alone  # the parent's goes on


def test_a_forked_child_drops_everything_and_nothing_waits(model: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("profile", "past", "trace", "run.jsonl")}
    engine = Engine(
        model, cache="50%", threads=2, profile=files["profile"], past_prompts=files["past"],
        trace=files["trace"], telemetry=files["run.jsonl"],
    )  # fmt: skip
    answer = engine.generate(PROMPT, **GREEDY)
    next(answer)
    held: list[Any] = [engine, answer]
    before = {name: path.read_bytes() for name, path in files.items() if path.exists()}

    def drop() -> str:
        held.clear()
        nonlocal engine, answer
        del engine, answer
        gc.collect()
        return "dropped"

    assert in_child(drop) == {"said": "dropped", "status": 0}
    for name, content in before.items():
        if name != "run.jsonl":  # its sampler writes on, in the parent
            assert files[name].read_bytes() == content
    assert "".join(answer)
    engine.close()
    assert files["profile"].exists()
    assert files["trace"].exists()


def test_a_forked_child_that_ends_as_interpreters_do(model: Path) -> None:
    script = f"""
        import os, sys
        from remoe_edge import Engine
        engine = Engine({str(model)!r}, cache="50%", threads=2)
        answer = engine.generate({PROMPT}, temperature=0, max_tokens=12)
        next(answer)
        pid = os.fork()
        if pid == 0:
            sys.exit(7)  # with everything that the end of an interpreter does
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        "".join(answer)
        print("parent goes on")
    """
    done = run_script(script)
    assert done.stdout == "parent goes on\n"


def test_a_new_engine_in_a_forked_child_runs_or_is_refused(model: Path) -> None:
    with Engine(model, cache="50%", threads=2) as engine:
        alone = engine.generate(PROMPT, **GREEDY).read()

        def one(threads: int) -> str:
            with Engine(model, cache="50%", threads=threads) as mine:
                return mine.generate(PROMPT, **GREEDY).read()

        assert in_child(lambda: one(1))["said"] == alone
        assert "spawn" in in_child(lambda: one(2))["said"]


def answer_elsewhere(model: str, queue: Any) -> None:
    """Make an engine and answer; at the module's top, where a spawned process finds it."""
    try:
        with Engine(model, cache="50%", threads=2) as engine:
            queue.put(engine.generate(PROMPT, **GREEDY).read())
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing(model: Path, method: str) -> None:
    with Engine(model, cache="50%", threads=2) as engine:
        alone = engine.generate(PROMPT, **GREEDY).read()
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=answer_elsewhere, args=(str(model), queue))
        process.start()
        said = queue.get(timeout=600)
        process.join(600)
        assert process.exitcode == 0
        if method == "fork":
            assert "UnsupportedError" in said
        else:
            assert said == alone
