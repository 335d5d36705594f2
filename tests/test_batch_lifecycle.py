"""A batch that is dropped, outlives its engine's name, is closed under or forked: as an answer is."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from remoe_edge import Engine
from remoe_edge.errors import InputError, RemoeError, UnsupportedError

PROMPT = [5, 6, 7]


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.n_ended = 0
        self.failures: list[Exception] = []

    def piece(self, text: str) -> None:
        self.pieces.append(text)

    def ended(self) -> None:
        self.n_ended += 1

    def failed(self, error: Exception) -> None:
        self.failures.append(error)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("m") / "m.gguf", "qwen3moe", "Q8_0")


def opened(model: Path) -> Engine:
    return Engine(model, cache="50%", n_ctx=64, threads=1, parallel=2)


def test_a_dropped_batch_frees_the_engine(model: Path) -> None:
    with opened(model) as engine:
        batch = engine.batch()
        batch.join(PROMPT, Heard(), max_tokens=9)
        batch.step()
        with pytest.raises(InputError, match="answer"):
            engine.generate(PROMPT)
        del batch
        gc.collect()
        assert engine.generate(PROMPT, max_tokens=2, temperature=0).read()


def test_a_batch_keeps_its_engine(model: Path) -> None:
    engine, heard = opened(model), Heard()
    batch = engine.batch()
    batch.join(PROMPT, heard, max_tokens=2, temperature=0)
    del engine
    gc.collect()
    while batch.step():
        pass
    assert heard.n_ended == 1


def calls(batch: Any) -> dict[str, Callable[[], object]]:
    return {"step": batch.step, "join": lambda: batch.join(PROMPT, Heard())}


def test_a_batch_of_a_closed_engine_says_closed(model: Path) -> None:
    engine = opened(model)
    batch = engine.batch()
    batch.join(PROMPT, Heard(), max_tokens=9)
    batch.step()
    engine.close()
    for call in calls(batch).values():
        with pytest.raises(InputError, match="closed"):
            call()
    batch.close()


def test_a_forked_child_is_told(model: Path) -> None:
    with opened(model) as engine:
        batch, heard = engine.batch(), Heard()
        batch.join(PROMPT, heard, max_tokens=2, temperature=0)
        child = os.fork()
        if child == 0:
            said = 0
            for call in calls(batch).values():
                try:
                    call()
                except UnsupportedError as error:
                    said += "fork" in str(error)
            batch.close()
            del batch
            gc.collect()
            os._exit(said)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 2
        while batch.step():  # the parent's goes on
            pass
        assert heard.n_ended == 1


@pytest.mark.parametrize("listener", [None, object(), "x", print])
def test_what_cannot_listen_is_refused(model: Path, listener: Any) -> None:
    with opened(model) as engine:
        batch = engine.batch()
        with pytest.raises(InputError, match="listener"):
            batch.join(PROMPT, listener)
        assert batch.n_free == 2


@pytest.mark.parametrize(
    "prompt", [[], "", None, 5, [-1], [10**9], [1.5], list(range(5, 200)), b"x"]
)
def test_prompts_that_are_none_take_no_place(model: Path, prompt: Any) -> None:
    with opened(model) as engine:
        batch = engine.batch()
        with pytest.raises(RemoeError):
            batch.join(prompt, Heard())
        assert batch.n_free == 2
