"""Engines and answers on bad days: closed, dropped, shared, forked, copied, at the interpreter's end."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_dense
import tiny_moe
from remoe_edge import Engine, InputError, UnsupportedError
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.errors import RemoeError
from remoe_edge.native import _core, llama_cpp

PROMPT = [11, 48, 85, 122, 159, 196, 38]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("life") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    with Engine(model, cache="50%", n_ctx=256, threads=2) as opened:
        yield opened


class Onlooker:
    """An observer that does something in the middle of things."""

    def __init__(self, do: Callable[[], None] = lambda: None) -> None:
        self.do = do
        self.heard: list[str] = []

    def on_load(self, facts: Any) -> None:
        self.heard.append("load")

    def on_begin(self, n_prompt: int) -> None:
        self.heard.append("begin")

    def on_step(self, step: Step) -> None:
        self.heard.append("step")
        self.do()

    def on_answer(self, answer: AnswerStats) -> None:
        self.heard.append(f"answer {answer.stop}")

    def on_close(self) -> None:
        self.heard.append("close")


# --- closed ---

FACTS = {
    "path", "settings", "notes", "threads", "n_ctx", "load_ms", "budget", "streamed", "answer",
}  # fmt: skip
CALLS: dict[str, Callable[[Engine], Any]] = {
    "tokenize": lambda e: e.tokenize("x"),
    "evaluate": lambda e: e.evaluate(PROMPT),
    "generate": lambda e: e.generate(PROMPT),
    "chat": lambda e: e.chat([{"role": "user", "content": "x"}]),
    "render": lambda e: e.render([{"role": "user", "content": "x"}]),
    "reset": lambda e: e.reset(),
    "stats": lambda e: e.stats(),
    "counts": lambda e: e.counts(),
    "is_end": lambda e: e.is_end(1),
    "add_observer": lambda e: e.add_observer(Onlooker()),
    "llama": lambda e: e.llama,
    "native": lambda e: e.native,
    "chat_template": lambda e: e.chat_template,
    "trace_failure": lambda e: e.trace_failure,
    "router_probabilities": lambda e: e.router_probabilities,
    "recording_ns": lambda e: e.recording_ns,
}
HARMLESS = {
    "close": lambda e: e.close(),
    "remove_observer": lambda e: e.remove_observer(Onlooker()),
}


def test_every_public_name_is_covered() -> None:
    public = {name for name in dir(Engine) if not name.startswith("_")}
    assert public - {"watch", "unwatch"} == FACTS | CALLS.keys() | HARMLESS.keys()


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_every_method_of_a_closed_engine_says_closed(
    model: Path, tmp_path: Path, kind: str
) -> None:
    path = model if kind == "moe" else tiny_dense.make(tmp_path / "dense.gguf")
    engine = Engine(path, n_ctx=128)
    before = {name: getattr(engine, name) for name in FACTS}
    engine.close()
    for call in CALLS.values():
        with pytest.raises(InputError, match="closed"):
            call(engine)
    for call in HARMLESS.values():
        call(engine)
    assert {name: getattr(engine, name) for name in FACTS} == before


def test_an_answer_read_on_after_close_says_closed(model: Path) -> None:
    engine = Engine(model, cache="50%")
    begun, untouched = engine.generate(PROMPT, **GREEDY), engine.generate(PROMPT, **GREEDY)
    looking = Onlooker()
    engine.add_observer(looking)
    text = next(begun)
    engine.close()
    for answer in (begun, untouched):
        for read in (next, list, "".join, lambda a: a.read(), lambda a: a.throw(ValueError("x"))):
            with pytest.raises((InputError, ValueError), match="closed|x"):
                read(answer)  # type: ignore[operator]
        answer.close()
    assert (begun.text, begun.finish_reason) == (text, "cancelled")
    assert looking.heard == ["load", "begin", "step", "answer cancelled", "close"]


def test_an_answer_that_has_ended_outlives_the_engine(model: Path) -> None:
    with Engine(model, cache="50%") as engine:
        answer = engine.generate(PROMPT, **GREEDY)
        text = answer.read()
    assert (answer.text, list(answer)) == (text, [])
    assert answer.stats.n_generated == len(answer.token_ids) > 0


def test_closing_from_an_observer_takes_effect_after_the_step(model: Path) -> None:
    engine = Engine(model, cache="50%")
    looking = Onlooker(engine.close)
    engine.add_observer(looking)
    answer = engine.generate(PROMPT, **GREEDY)
    with pytest.raises(InputError, match="closed"):
        answer.read()
    assert looking.heard[-1] == "close"
    assert looking.heard.count("step") == 1
    with pytest.raises(InputError, match="closed"):
        engine.tokenize("x")


def test_closing_from_a_signal_handler(model: Path) -> None:
    engine = Engine(model, cache="50%")
    previous = signal.signal(signal.SIGUSR1, lambda *_: engine.close())
    engine.add_observer(Onlooker(lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    try:
        with pytest.raises(InputError, match="closed"):
            engine.generate(PROMPT, **GREEDY).read()
    finally:
        signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize("stream", [True, False])
def test_closing_from_another_thread_waits_for_the_step(model: Path, stream: bool) -> None:
    engine = Engine(model, stream=stream, n_ctx=256, threads=1)
    begun = threading.Event()
    engine.add_observer(Onlooker(begun.set))
    ended: list[BaseException] = []

    def read() -> None:
        try:
            while True:
                engine.generate(PROMPT * 4, temperature=0, max_tokens=200).read()
        except RemoeError as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(30)
    engine.close()
    thread.join(30)
    assert not thread.is_alive()
    assert "closed" in str(ended[0])


# --- dropped ---


def test_a_dropped_answer_frees_the_engine(engine: Engine) -> None:
    looking = Onlooker()
    engine.add_observer(looking)
    whole = engine.generate(PROMPT, **GREEDY).read()
    next(engine.generate(PROMPT, **GREEDY))
    for _ in engine.generate(PROMPT, **GREEDY):
        break
    assert looking.heard.count("answer cancelled") == 2
    assert engine.generate(PROMPT, **GREEDY).read() == whole


def test_answers_in_cycles_free_the_engine_when_collected(engine: Engine) -> None:
    answer = engine.generate(PROMPT, **GREEDY)
    next(answer)
    cycle: list[Any] = [answer]
    cycle.append(cycle)
    del answer, cycle
    gc.collect()
    assert engine.generate(PROMPT, **GREEDY).read()


def test_an_answer_keeps_its_engine(model: Path) -> None:
    with Engine(model, cache="50%") as engine:
        whole = engine.generate(PROMPT, **GREEDY).read()
    answer = Engine(model, cache="50%").generate(PROMPT, **GREEDY)
    gc.collect()
    assert answer.read() == whole


def test_a_dropped_engine_tells_its_observers_and_frees_its_memory(model: Path) -> None:
    engine = Engine(model, cache="50%")
    looking = Onlooker()
    engine.add_observer(looking)
    llama = engine.llama
    del engine
    gc.collect()
    assert looking.heard == ["load", "close"]
    assert llama._model.model is None


@pytest.mark.parametrize(
    ("thrown", "reason"),
    [(ValueError("mine"), "error"), (KeyboardInterrupt(), "cancelled"), (StopIteration(), "error")],
)
def test_an_exception_thrown_into_an_answer_ends_it(
    engine: Engine, thrown: BaseException, reason: str
) -> None:
    answer = engine.generate(PROMPT, **GREEDY)
    text = next(answer)
    # A generator may not end by StopIteration, and says so.
    kind = RuntimeError if isinstance(thrown, StopIteration) else type(thrown)
    with pytest.raises(kind):
        answer.throw(thrown)
    assert (answer.finish_reason, answer.text, list(answer)) == (reason, text, [])
    untouched = engine.generate(PROMPT, **GREEDY)
    with pytest.raises(ValueError, match="early"):
        untouched.throw(ValueError("early"))
    assert list(untouched) == []
    assert engine.generate(PROMPT, **GREEDY).read().startswith(text)


def test_what_the_reader_raises_ends_the_answer(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.generate(PROMPT, **GREEDY) as answer:
        for _ in answer:
            1 / 0  # noqa: B018
    assert answer.finish_reason == "cancelled"
    assert engine.generate(PROMPT, **GREEDY).read()


# --- shared ---


def test_a_second_answer_is_refused_while_one_runs(engine: Engine) -> None:
    alone = engine.generate(PROMPT, **GREEDY).read()
    first, second = engine.generate(PROMPT, **GREEDY), engine.generate([5, 6, 7], **GREEDY)
    text = next(first)
    for call in (
        lambda: engine.generate([5, 6, 7]),
        lambda: engine.chat([{"role": "user", "content": "x"}]),
        lambda: engine.evaluate([5]),
        engine.reset,
        lambda: next(second),
        second.read,
    ):
        with pytest.raises(InputError, match="answer"):
            call()
    # What does not compute goes on.
    assert engine.tokenize("x")
    assert engine.stats().answer is first.stats
    assert text + "".join(first) == alone
    assert second.read() == engine.generate([5, 6, 7], **GREEDY).read()  # its turn has come


def test_two_threads_on_one_engine(engine: Engine) -> None:
    alone = engine.generate(PROMPT, **GREEDY).read()
    going, refused = threading.Event(), threading.Event()
    said: list[str] = []

    def hold() -> None:
        going.set()
        assert refused.wait(30)

    engine.add_observer(Onlooker(hold))
    answer = engine.generate(PROMPT, **GREEDY)

    def other() -> None:
        assert going.wait(30)
        for call in (
            lambda: next(answer), answer.close, lambda: engine.generate(PROMPT),
            lambda: engine.evaluate(PROMPT), engine.reset,
        ):  # fmt: skip
            try:
                call()
            except InputError as error:
                said.append(str(error))
        refused.set()

    thread = threading.Thread(target=other)
    thread.start()
    text = answer.read()
    thread.join(30)
    assert text == alone
    assert len(said) == 5
    assert all("answer" in each for each in said)


def test_an_answer_may_be_read_by_turns_of_threads(engine: Engine) -> None:
    alone = engine.generate(PROMPT, **GREEDY).read()
    answer = engine.generate(PROMPT, **GREEDY)
    text: list[str] = [next(answer)]
    thread = threading.Thread(target=lambda: text.extend(answer))
    thread.start()
    thread.join(30)
    assert "".join(text) == alone


def test_an_observer_cannot_ask_the_engine_it_looks_at(engine: Engine) -> None:
    said: list[str] = []

    def ask() -> None:
        for call in (lambda: engine.generate([5]), lambda: engine.evaluate([5])):
            try:
                call()
            except InputError as error:
                said.append(str(error))

    engine.add_observer(Onlooker(ask))
    assert engine.generate(PROMPT, temperature=0, max_tokens=2).read()
    assert len(said) == 4


def test_two_engines_in_two_threads(model: Path) -> None:
    with Engine(model, cache="100%", n_ctx=256) as engine:
        expected = engine.evaluate(PROMPT * 3)
        text = engine.generate(PROMPT, **GREEDY).read()
    found: list[tuple[bool, str]] = []

    def run(cache: str) -> None:
        for _ in range(3):
            with Engine(model, cache=cache, n_ctx=256, threads=1) as engine:
                same = np.array_equal(engine.evaluate(PROMPT * 3), expected)
                found.append((same, engine.generate(PROMPT, **GREEDY).read()))

    threads = [threading.Thread(target=run, args=(cache,)) for cache in ("50%", "30%")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [(True, text)] * 6


def test_answers_of_two_engines_take_turns_and_leave_ctrl_c_as_it_was(model: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Engine(model, cache="50%") as one, Engine(model, cache="30%") as two:
        alone = one.generate(PROMPT, **GREEDY).read()
        first, second = one.generate(PROMPT, **GREEDY), two.generate(PROMPT, **GREEDY)
        texts = [next(first), next(second)]
        texts[0] += "".join(first)
        texts[1] += "".join(second)
        assert texts == [alone, alone]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_engine_made_while_another_loads(model: Path) -> None:
    inner: list[str] = []

    def progress(fraction: float) -> bool:
        if not inner:
            inner.append("")
            with Engine(model, cache="50%", n_ctx=128) as nested:
                inner[0] = nested.generate(PROMPT, **GREEDY).read()
        return True

    with Engine(model, cache="50%", n_ctx=128, progress=progress) as engine:
        assert engine.generate(PROMPT, **GREEDY).read() == inner[0]


@pytest.mark.parametrize("stream", [True, False])
def test_a_plain_llama_made_meanwhile_is_the_model_it_asked_for(
    model: Path, tmp_path: Path, stream: bool
) -> None:
    other = tiny_moe.make(tmp_path / "other.gguf", "deepseek2", "Q8_0")
    found: list[str] = []
    buffers: list[dict[str, int]] = []

    def plain() -> None:
        llama = llama_cpp.Llama(model_path=str(other), n_ctx=64, verbose=False)
        found[0] = llama.metadata["general.architecture"]
        llama.close()

    for meanwhile in (False, True):

        def progress(fraction: float, meanwhile: bool = meanwhile) -> bool:
            if meanwhile and not found:
                found.append("")
                thread = threading.Thread(target=plain)
                thread.start()
                thread.join(30)
            return True

        with Engine(model, cache="50%", stream=stream, progress=progress, n_ctx=128) as engine:
            buffers.append(engine.stats().buffers)
        assert llama_cpp.llama_cpp.llama_model_load_from_file.__module__.startswith("llama_cpp")

    if not found:
        pytest.fail("the plain model was not loaded")
    assert found == ["deepseek2"]
    assert buffers[0] == buffers[1]  # its figures did not get into the engine's


# --- copied, forked ---


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
    for _ in range(200):
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
    done = run(script)
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
        said = queue.get(timeout=60)
        process.join(60)
        assert process.exitcode == 0
        if method == "fork":
            assert "UnsupportedError" in said
        else:
            assert said == alone


# --- the interpreter's end ---


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; it must end by itself, and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "del engine",
        "del answer",
        "del engine, answer",
        "cycle = [engine, answer]; cycle.append(cycle); del engine, answer",
        "native, llama = engine.native, engine.llama; del engine",
        "llama = engine.llama; del engine, answer",
        "import atexit; atexit.register(engine.close)",
        "import atexit; atexit.register(lambda: answer.close())",
        "engine.close(); del engine",
        "import builtins; builtins.kept = engine, answer",
        "sys.modules['kept'] = answer; del answer",
        "import threading\n"
        "threading.Thread(target=lambda: list(answer)).start()",
    ],
)  # fmt: skip
def test_the_end_of_the_interpreter_in_any_order(model: Path, end: str) -> None:
    script = f"""
        import sys
        from remoe_edge import Engine
        engine = Engine({str(model)!r}, cache="50%", threads=2, n_ctx=256)
        answer = engine.generate({PROMPT}, temperature=0, max_tokens=200)
        next(answer)
        print("here", flush=True)
    """
    assert run(textwrap.dedent(script) + end + "\n").stdout == "here\n"


def test_a_daemon_thread_that_computes_as_the_interpreter_ends(model: Path) -> None:
    script = f"""
        import threading, time
        from remoe_edge import Engine, InputError
        engine = Engine({str(model)!r}, cache="50%", threads=2, n_ctx=256)
        begun = threading.Event()
        def read():
            try:
                while True:
                    with engine.generate({PROMPT}, temperature=0, max_tokens=200) as answer:
                        for piece in answer:
                            begun.set()
            except InputError as error:
                assert "closed" in str(error), error
        threading.Thread(target=read, daemon=True).start()
        begun.wait()
    """
    run(script)


# --- failed steps ---


@pytest.mark.parametrize("arch", ["qwen3moe", "granitehybrid", "qwen3next", "lfm2moe"])
@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_after_a_step_that_did_not_end_the_same_prompt_works(
    tmp_path: Path, arch: str, how: str
) -> None:
    model = tiny_moe.make(tmp_path / "m.gguf", arch, "Q8_0")
    prompt = list(range(7, 30))
    with Engine(model, cache="100%", n_ctx=128, threads=1) as engine:
        alone = engine.generate(prompt, temperature=0, max_tokens=5).read()
    opened = _core.StreamedModel.open(str(model))
    floor = f"{-(-opened.budget_for(max(1, opened.n_experts_used)) // 1024)}KiB"
    del opened
    layer = _core.ModelFile.open(str(model)).expert_layers[-1]
    down = layer.matrices[-1]
    fault = _core.FaultPlan(
        range_file=0, range_offset=down.offset, range_bytes=down.expert_bytes * layer.n_experts
    )
    with Engine(model, cache=floor, n_ctx=128, threads=1, prefetch="off", policy="lru") as engine:
        native = engine.native
        assert native is not None

        def stop() -> None:
            if how == "failed":
                native.set_faults(fault)
            else:
                engine.llama.eval = interrupting

        def interrupting(tokens: Any) -> None:
            del engine.llama.eval
            native.interrupt()
            engine.llama.eval(tokens)

        for _ in range(2):
            answer = engine.generate(prompt, temperature=0, max_tokens=12)
            next(answer)
            stop()
            with pytest.raises((RemoeError, KeyboardInterrupt)):
                answer.read()
            native.set_faults(_core.FaultPlan())
            native.clear_interrupt()
            if engine.llama._is_recurrent or engine.llama._is_hybrid:
                # Nobody goes on unawares from a context that is gone.
                with pytest.raises(InputError, match="reset=True"):
                    engine.evaluate([5], reset=False)
            assert engine.generate(prompt, temperature=0, max_tokens=5).read() == alone
        assert engine.generate([*prompt, 5], temperature=0, max_tokens=2).read()
