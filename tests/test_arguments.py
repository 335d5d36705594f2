"""Arguments that make no sense: each is refused in one line, by every method and every option.

The options come from the commands as click knows them, so a new one is tried without a word here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_moe
from remoe_edge import Engine, EngineSettings, RemoeError
from remoe_edge.errors import InputError
from remoe_edge.units import parse_bytes, parse_ms

# What nobody means: other types, empty ones, numbers out of range, texts that look like numbers.
ODD: tuple[Any, ...] = (
    None, "", b"", b"x", "x", -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1.5, math.nan, math.inf, True,
    False, [], (), {}, set(), object(), [None], ["a", 1], "\udcff", "a\0b", "x" * 5000, np.int64(3),
    np.float32(2), np.array([1, 2]), "1" * 400, "\uff11\uff12", "nan%", [2**40], [-1], [1.5], [True],
    1j, range(3), Path("/nowhere/to/be/found"), bytearray(b"a"),
)  # fmt: skip
SAMPLING = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "logit_bias", "seed", "stop", "logprobs", "grammar", "special", "bos", "form",
    "on_reasoning",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("m") / "m.gguf", "qwen3moe", "Q8_0")


def refused_or_right(what: str, do: Callable[..., object], *given: Any, **named: Any) -> None:
    """Insist that a call ends well or with an error of this package's, of one line."""
    try:
        do(*given, **named)
        return
    except RemoeError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert said, what
    assert "\n" not in said, what


def test_settings() -> None:
    for each in dataclasses.fields(EngineSettings):
        for value in ODD:
            refused_or_right(f"{each.name}={value!r}", EngineSettings, **{each.name: value})


@pytest.mark.parametrize(
    "name", ["path", "profile", "past_prompts", "trace", "telemetry", "publish", "progress", "settings"]
)  # fmt: skip
def test_what_an_engine_is_given(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where "x" is written

    def make(**given: Any) -> None:
        Engine(**{"path": model, "cache": "100%", "n_ctx": 64, "threads": 1, **given}).close()

    for value in ODD:
        refused_or_right(f"{name}={value!r}", make, **{name: value})


def test_paths_as_bytes(model: Path, tmp_path: Path) -> None:
    profile = bytes(tmp_path / "kept.profile")
    with Engine(bytes(model), cache="100%", n_ctx=64, threads=1, profile=profile) as engine:
        engine.evaluate([5, 6, 7])
    assert (tmp_path / "kept.profile").is_file()


def test_every_argument_of_every_method(model: Path) -> None:
    """Afterwards the engine answers as it did before."""
    with Engine(model, cache="100%", n_ctx=64, threads=1) as engine:

        def generate(prompt: Any = (5, 6, 7), **settings: Any) -> None:
            engine.generate(prompt, **{"max_tokens": 2, **settings}).read()

        before = engine.generate([5, 6, 7], max_tokens=4, temperature=0).read()
        for value in ODD:
            said = repr(value)
            for call in (engine.evaluate, engine.tokenize, generate, engine.is_end, engine.render):
                refused_or_right(f"{call.__name__}({said})", call, value)
            for part in ("role", "content"):
                message = {"role": "user", "content": "x", part: value}
                refused_or_right(f"{part} {said}", engine.render, [message])
            for name in SAMPLING:
                refused_or_right(f"{name}={said}", generate, **{name: value})
            for name in ("reset", "every"):
                refused_or_right(f"{name}={said}", engine.evaluate, [5], **{name: value})
            for name in ("special", "bos"):
                refused_or_right(f"{name}={said}", engine.tokenize, "x", **{name: value})
        assert engine.generate([5, 6, 7], max_tokens=4, temperature=0).read() == before


@pytest.mark.parametrize(
    "text", ["1" * 400, "9e9", "1e999GiB", "inf", "nan", "-1", "8589934592GiB"]
)
def test_sizes_that_no_machine_has(text: str) -> None:
    with pytest.raises(InputError):
        parse_bytes(text)
    with pytest.raises(InputError):
        parse_ms(text)


@pytest.mark.parametrize("flag", ["no", 0, 1, None, "False"])
def test_a_text_is_no_flag(model: Path, flag: Any) -> None:
    with Engine(model, cache="100%", n_ctx=64, threads=1) as engine:
        for call in (
            lambda: engine.tokenize("x", special=flag),
            lambda: engine.evaluate([5], reset=flag),
            lambda: engine.generate("x", bos=flag),
        ):
            with pytest.raises(InputError, match="True or False"):
                call()
