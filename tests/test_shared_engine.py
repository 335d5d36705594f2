"""Two answers, two threads, two engines, and a plain `Llama` beside them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny_moe
from engines import GREEDY, PROMPT, Onlooker
from remoe_edge import Engine, InputError
from remoe_edge.native import llama_cpp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("life") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    with Engine(model, cache="50%", n_ctx=256, threads=2) as opened:
        yield opened


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
        assert refused.wait(600)

    engine.add_observer(Onlooker(hold))
    answer = engine.generate(PROMPT, **GREEDY)

    def other() -> None:
        assert going.wait(600)
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
    thread.join(600)
    assert text == alone
    assert len(said) == 5
    assert all("answer" in each for each in said)


def test_an_answer_may_be_read_by_turns_of_threads(engine: Engine) -> None:
    alone = engine.generate(PROMPT, **GREEDY).read()
    answer = engine.generate(PROMPT, **GREEDY)
    text: list[str] = [next(answer)]
    thread = threading.Thread(target=lambda: text.extend(answer))
    thread.start()
    thread.join(600)
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
        thread.join(600)
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
                thread.join(600)
            return True

        with Engine(model, cache="50%", stream=stream, progress=progress, n_ctx=128) as engine:
            buffers.append(engine.stats().buffers)
        assert llama_cpp.llama_cpp.llama_model_load_from_file.__module__.startswith("llama_cpp")

    if not found:
        pytest.fail("the plain model was not loaded")
    assert found == ["deepseek2"]
    assert buffers[0] == buffers[1]  # its figures did not get into the engine's
