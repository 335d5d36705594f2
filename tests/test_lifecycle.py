"""Engines and answers that are closed, dropped, or still there as the interpreter ends."""

from __future__ import annotations

import gc
import os
import signal
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_dense
import tiny_moe
from engines import CALLS, FACTS, GREEDY, HARMLESS, PROMPT, Onlooker, run_script
from remoe_edge import Engine, InputError
from remoe_edge.errors import RemoeError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("life") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    with Engine(model, cache="50%", n_ctx=256, threads=2) as opened:
        yield opened


# --- closed ---
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
    assert begun.wait(600)
    engine.close()
    thread.join(600)
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


@pytest.mark.parametrize("when", ["on_begin", "on_step", "on_answer"])
def test_ctrl_c_in_an_observer_leaves_the_engine_free(engine: Engine, when: str) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    looking = Onlooker()
    setattr(looking, when, press)
    engine.add_observer(looking)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, **GREEDY).read()
    engine.remove_observer(looking)
    assert engine.generate(PROMPT, **GREEDY).read()


# --- the interpreter's end ---


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
    assert run_script(textwrap.dedent(script) + end + "\n").stdout == "here\n"


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
    run_script(script)
