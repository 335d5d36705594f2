"""Guessed tokens: what is guessed, when it pays, and that the answer is the one without guesses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stock
import tiny_moe
from drafting import N_ALL, TEXT, answered, guess
from remoe_edge import Engine
from remoe_edge.engine import drafts, loading
from remoe_edge.engine.drafts import PromptLookup
from remoe_edge.errors import InputError, ReadError, UnsupportedError
from remoe_edge.native import _core

QUANTS = {
    "qwen3moe": "Q8_0", "gpt-oss": "MXFP4", "gemma4": "Q4_0", "glm4moe": "Q4_0", "deepseek2": "Q4_K",
    "phimoe": "Q8_0",
}  # fmt: skip
# Formats whose kernels compute a token of a small step as they compute it alone.
ARCHS = ("qwen3moe", "gpt-oss", "gemma4", "glm4moe")


# --- what is guessed ---


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    lookup = PromptLookup()
    lookup.add([1, 2, 3, 4, 5, 9, 2, 3])
    assert lookup.guess(3) == [4, 5, 9]
    lookup.add([4])
    assert lookup.guess(2) == [5, 9]
    lookup.add([7])
    assert lookup.guess(2) == []


def test_the_longer_run_counts_and_of_equals_the_last() -> None:
    lookup = PromptLookup()
    lookup.add([1, 2, 3, 50, 8, 2, 3, 60, 2, 3, 70, 1, 2, 3])
    assert lookup.guess(1) == [50]
    lookup = PromptLookup()
    lookup.add([2, 3, 60, 2, 3, 70, 9, 2, 3])
    assert lookup.guess(1) == [70]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 8))
def test_a_guess_stood_there_before(tokens: list[int], n_most: int) -> None:
    lookup = PromptLookup()
    lookup.add(tokens)
    guess = lookup.guess(n_most)
    assert len(guess) <= n_most
    last = tokens[-2:]
    runs = [tokens[i : i + 2 + len(guess)] for i in range(len(tokens))]
    assert not guess or [*last, *guess] in runs


# --- the answer ---


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drafts")
    return {
        arch: tiny_moe.make(folder / f"{arch}.gguf", arch, quant) for arch, quant in QUANTS.items()
    }


@pytest.fixture
def model(models: dict[str, Path]) -> Path:
    return models["qwen3moe"]


@pytest.fixture
def well_guessed(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Have an answer that is known guessed, wrong now and then: random models hardly repeat."""

    def use(known: list[int]) -> None:
        guess(monkeypatch, known)

    return use


@pytest.fixture
def both(model: Path) -> Iterator[tuple[Engine, Engine]]:
    plain = Engine(model, cache="30%", threads=1, n_ctx=128)
    with plain, Engine(model, cache="30%", threads=1, n_ctx=128, draft="on") as drafting:
        yield plain, drafting


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("cache", ["30%", "100%"])
def test_a_drafted_answer_has_the_bits_of_the_plain_one(
    models: dict[str, Path], arch: str, cache: str, well_guessed: Callable[[list[int]], None]
) -> None:
    with Engine(models[arch], cache=cache, threads=1, n_ctx=128) as engine:
        wanted = answered(engine, temperature=0)
    well_guessed(wanted.token_ids)
    with Engine(models[arch], cache=cache, threads=1, n_ctx=128, draft="on") as engine:
        drafted = answered(engine, temperature=0)
    assert drafted.token_ids == wanted.token_ids
    assert drafted.logprobs == wanted.logprobs
    assert drafted.finish_reason == wanted.finish_reason
    assert drafted.stats.guessed > drafted.stats.guessed_right > 20


@pytest.mark.parametrize("arch", ["deepseek2", "phimoe"])
def test_where_kernels_see_their_neighbours_it_has_stocks_bits_for_the_same_steps(
    models: dict[str, Path],
    arch: str,
    well_guessed: Callable[[list[int]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = models[arch]
    with Engine(path, cache="30%", threads=1, n_ctx=128) as engine:
        wanted = answered(engine, temperature=0)
    well_guessed(wanted.token_ids)
    calls: stock.Calls = [["decode", TEXT, 0, False]]
    rows = []
    compute = drafts.Drafted._compute

    def recorded(self: drafts.Drafted, llama: Any, tokens: list[int]) -> None:
        begin = int(llama.n_tokens)
        compute(self, llama, tokens)
        calls.extend([["remove", begin], ["decode", tokens, begin, True]])
        row = self._loaded.row(len(tokens) - 1)
        assert row is not None
        rows.append(row.copy())

    monkeypatch.setattr(drafts.Drafted, "_compute", recorded)
    with Engine(path, cache="30%", threads=1, n_ctx=128, draft="on") as engine:
        assert answered(engine, temperature=0).stats.guessed_right > 20
    found = stock.replay(path, calls, n_threads=1, n_ctx=128, use_extra_bufts=False)
    np.testing.assert_array_equal(found[1:], np.stack(rows))


@pytest.mark.parametrize("settings", [{"seed": 3, "temperature": 1.5}, {"repeat_penalty": 1.3}])
def test_so_has_a_sampled_one(
    both: tuple[Engine, Engine],
    settings: dict[str, Any],
    well_guessed: Callable[[list[int]], None],
) -> None:
    plain, drafting = both
    settings = {"seed": 1, **settings}
    wanted = answered(plain, **settings)
    well_guessed(wanted.token_ids)
    drafted = answered(drafting, **settings)
    assert drafted.token_ids == wanted.token_ids
    assert drafted.stats.guessed_right > 20


def test_the_next_turn_goes_on_from_what_was_right(both: tuple[Engine, Engine]) -> None:
    for engine in both:
        answered(engine, temperature=0)
    more = [*TEXT, *answered(both[0], temperature=0).token_ids[:20], 7, 8]
    texts = []
    for engine in both:
        answer = engine.generate(more, max_tokens=20, temperature=0, logprobs=N_ALL, bos=False)
        answer.read()
        texts.append((answer.token_ids, answer.logprobs))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_it_ends_where_it_was_told(both: tuple[Engine, Engine], n: int) -> None:
    for engine in both:
        answer = engine.generate(TEXT, max_tokens=n, temperature=0, bos=False)
        answer.read()
        assert len(answer.token_ids) == n


def test_a_full_context_ends_it(model: Path) -> None:
    ends = []
    for draft in ("off", "on"):
        with Engine(model, cache="30%", threads=1, n_ctx=64, draft=draft) as engine:
            answer = answered(engine, max_tokens=None, logprobs=None, temperature=0)
            ends.append((answer.token_ids, answer.stats.stop))
    assert ends[0] == ends[1]
    assert ends[1][1] == "context"


def test_dropped_in_the_middle_of_a_step_it_leaves_the_engine_well(
    both: tuple[Engine, Engine], well_guessed: Callable[[list[int]], None]
) -> None:
    plain, drafting = both
    well_guessed(answered(plain, temperature=0).token_ids)
    for n in (1, 2, 3, 7):
        answer = drafting.generate(TEXT, max_tokens=30, temperature=0, bos=False)
        for _ in range(n):
            next(answer, None)
        answer.close()
        assert answered(drafting, temperature=0).token_ids == (
            answered(plain, temperature=0).token_ids
        )


def test_storage_that_fails_fails_one_answer(model: Path) -> None:
    with Engine(model, cache="30%", threads=1, n_ctx=128, draft="on", prefetch="off") as engine:
        wanted = answered(engine, temperature=0).token_ids
        engine.reset()
        assert engine.native is not None
        engine.native.set_faults(_core.FaultPlan(fail_operation=60))
        with pytest.raises(ReadError):
            for _ in range(40):
                answered(engine, temperature=0)
        engine.native.set_faults(_core.FaultPlan())
        assert answered(engine, temperature=0).token_ids == wanted


# --- what is refused ---


def test_a_model_that_cannot_take_guesses_back_is_refused(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3next", "Q8_0")
    with pytest.raises(UnsupportedError, match="--draft on.*recurrent"):
        Engine(path, cache="50%", draft="on")


def test_several_conversations_are_not_drafted_for(model: Path) -> None:
    with pytest.raises(InputError, match="draft"):
        Engine(model, cache="50%", draft="auto", parallel=2)
    with pytest.raises(InputError, match="draft is one of"):
        Engine(model, cache="50%", draft="yes")


def test_heads_for_further_tokens_are_there_and_that_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading._low, "llama_model_n_layer_nextn", lambda _: 2)
    with Engine(model, cache="50%", n_ctx=64, draft="auto") as engine:
        assert any("the 2 layers of this model that predict" in note for note in engine.notes)
    with Engine(model, cache="50%", n_ctx=64) as engine:
        assert not any("MTP" in note for note in engine.notes)
