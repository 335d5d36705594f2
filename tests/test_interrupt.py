"""Ctrl-C: where it ends loading and answers, and whose handler is called."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import tiny_moe
from remoe_edge import Engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupt") / "m.gguf"
    return tiny_moe.make(path, "qwen3moe", "Q4_0", n_vocab=8192)


@pytest.fixture(autouse=True)
def handler_is_restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def press_while_computing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = engine.llama.eval

    def pressed(tokens: list[int]) -> None:
        press()
        monkeypatch.undo()
        compute(tokens)
        pytest.fail("llama.cpp ran to the end")

    monkeypatch.setattr(engine.llama, "eval", pressed)


@pytest.mark.parametrize("stream", [True, False])
def test_it_ends_loading(model: Path, stream: bool) -> None:
    fractions = []

    def progress(fraction: float) -> bool:
        fractions.append(fraction)
        press()
        return True

    with pytest.raises(KeyboardInterrupt):
        Engine(model, stream=stream, progress=progress)
    assert len(fractions) == 1
    with Engine(model, stream=stream) as engine:
        assert engine.evaluate([1, 2, 3]).shape == (8192,)


def test_it_ends_an_answer_while_llama_cpp_computes(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(model) as engine:
        press_while_computing(engine, monkeypatch)
        pieces = engine.generate([1, 2, 3], temperature=0, max_tokens=4)
        with pytest.raises(KeyboardInterrupt):
            list(pieces)
        assert engine.answer.stop == "cancelled"
        assert engine.answer.n_generated == 0
        # It goes on as if nothing had been.
        again = "".join(engine.generate([1, 2, 3], temperature=0, max_tokens=4))
        engine.reset()
        assert "".join(engine.generate([1, 2, 3], temperature=0, max_tokens=4)) == again
    assert capfd.readouterr().err == ""


def test_between_two_pieces_it_is_the_callers(model: Path) -> None:
    with Engine(model) as engine:
        pieces = engine.generate([1, 2, 3], temperature=0, max_tokens=8)
        next(pieces)
        with pytest.raises(KeyboardInterrupt):
            press()
            signal.getsignal(signal.SIGINT)  # a call, at which Python notices
        # The caller who carries on is not stopped by what is past.
        assert next(pieces)
        pieces.close()
        assert engine.answer.stop == "cancelled"


def test_a_handler_of_the_programs_own_is_called(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    previous = signal.signal(signal.SIGINT, note)
    try:
        with Engine(model) as engine:
            press_while_computing(engine, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                engine.evaluate([1, 2, 3])
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is note
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_compute_without_it(model: Path) -> None:
    answers: list[str] = []

    def answer() -> None:
        with Engine(model) as engine:
            answers.append("".join(engine.generate([1, 2, 3], temperature=0, max_tokens=4)))

    thread = threading.Thread(target=answer)
    thread.start()
    thread.join()
    assert len(answers) == 1
