"""The engine as a program uses it: answers, statistics, budgets, one engine after another."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest

import tiny_dense
import tiny_moe
from remoe_edge import Engine, errors
from remoe_edge.native import _core
from waiting import wait_until

PROMPT = [11, 48, 85, 122, 159, 196, 38]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("engine") / "tiny.gguf", "qwen3moe", "Q4_K")


def test_generate_is_the_same_at_every_budget(model: Path) -> None:
    texts, ids, evictions = set(), set(), []
    for cache in ("100%", "40%", "17%"):
        with Engine(model, cache=cache) as engine:
            answer = engine.generate(PROMPT, max_tokens=12, temperature=0)
            texts.add("".join(answer))
            ids.add(tuple(answer.token_ids))
            evictions.append(engine.counts()["evictions"])
    assert len(texts) == len(ids) == 1
    assert texts.pop()
    assert len(ids.pop()) > 6
    assert evictions[0] == 0 < evictions[1] < evictions[2]  # the budgets were not the same


def test_statistics_add_up(model: Path) -> None:
    with Engine(model, cache="25%") as engine:
        list(engine.generate(PROMPT, max_tokens=10, temperature=0))
        stats = json.loads(json.dumps(engine.stats().to_dict(), allow_nan=False))
        native = engine.native
        assert native is not None
        per_expert = native.expert_bytes // native.total_experts
        cache = stats["cache"]
        assert stats["n_prompt"] == len(PROMPT)
        assert 1 <= stats["n_generated"] <= 10
        assert len(engine.answer.token_ms) == stats["n_generated"] - 1
        assert cache["misses"] > 0
        assert cache["bytes_read"] == cache["misses"] * per_expert
        assert cache["hits"] + cache["misses"] >= stats["n_generated"]
        assert cache["slots"] == round(0.25 * native.total_experts)
        assert stats["streamed"] is True
        assert {"mean", "p50", "p99"} <= stats["tpot_ms"].keys()
        # Each matrix of a miss may move one page more than its bytes at either end.
        pages = cache["misses"] * 3 * 2 * 4096
        assert cache["bytes_read"] <= cache["device_bytes"] <= cache["bytes_read"] + pages


@pytest.mark.parametrize("tied", [False, True])
def test_load_reads_dense_bytes_only(tmp_path: Path, tied: bool) -> None:
    """A tied output is the embedding once more for llama.cpp, and storage is asked for it once."""
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q4_K", tied_output=tied)
    assert ("output.weight" in {t.name for t in _core.ModelFile.open(str(model)).tensors}) != tied
    with Engine(model, cache="25%") as engine:
        native = engine.native
        assert native is not None
        assert native.dense_bytes_read == native.dense_bytes
        counts = native.counts()
        assert counts["misses"] == counts["bytes_read"] == 0
        # Everything that storage has moved so far: dense weights, in whole pages.
        n_tensors = len(_core.ModelFile.open(str(model)).tensors)
        assert counts["device_bytes"] <= native.dense_bytes + n_tensors * 2 * 4096


def test_resident_cache_misses_each_expert_once(model: Path) -> None:
    with Engine(model, cache="100%") as engine:
        native = engine.native
        assert native is not None
        list(engine.generate(PROMPT * 20, max_tokens=16, temperature=0))
        assert native.counts()["misses"] <= native.total_experts
        assert native.counts()["evictions"] == 0


def test_budget_in_bytes_is_kept(model: Path) -> None:
    with Engine(model, cache="1MiB") as engine:
        assert engine.budget is not None
        assert engine.stats()["cache"]["budget_bytes"] == engine.budget.n_bytes <= 1 << 20


@pytest.mark.parametrize("cache", ["0%", "101%", "x%", "lots", "-5", "5 apples", ""])
def test_nonsense_budget_is_refused(model: Path, cache: str) -> None:
    with pytest.raises(errors.InputError, match="--cache|size|share"):
        Engine(model, cache=cache)


def test_budget_below_the_floor_names_the_floor(model: Path) -> None:
    with pytest.raises(errors.BudgetError, match=r"MiB; use --cache (\d+)KiB") as caught:
        Engine(model, cache="4KiB")
    # The setting that the message names works.
    setting = str(caught.value).split("--cache ")[1].split(" ")[0]
    with Engine(model, cache=setting) as engine:
        assert engine.budget is not None
        assert engine.budget.n_slots == tiny_moe.shape_of("qwen3moe", "Q4_K").n_expert_used


def test_unknown_policy_is_refused(model: Path) -> None:
    with pytest.raises(errors.InputError, match="policy 'best'.*lru"):
        Engine(model, policy="best")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no model at"):
        Engine(tmp_path / "none.gguf")


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time " * 100)
    with pytest.raises(errors.ModelError, match="text.gguf"):
        Engine(path)


def test_prompt_longer_than_the_context(model: Path) -> None:
    with (
        Engine(model, cache="50%", n_ctx=256) as engine,
        pytest.raises(errors.InputError, match="do not fit the context"),
    ):
        list(engine.generate([7] * 300))


def test_generation_stops_at_the_end_of_the_context(model: Path) -> None:
    with Engine(model, cache="50%", n_ctx=256) as engine:
        list(engine.generate([7] * 250, max_tokens=100, temperature=0))
        assert engine.stats()["stop"] in ("context", "end")
        assert engine.stats()["n_generated"] <= 7


def test_stop_string_and_seed(model: Path) -> None:
    with Engine(model, cache="50%") as engine:
        whole = "".join(engine.generate(PROMPT, max_tokens=24, temperature=1, seed=5))
        again = "".join(engine.generate(PROMPT, max_tokens=24, temperature=1, seed=5))
        assert whole == again
        stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
        cut = "".join(engine.generate(PROMPT, max_tokens=24, temperature=1, seed=5, stop=[stop]))
        assert cut == whole[: whole.find(stop)]
        assert engine.stats()["stop"] == "stop"


def test_chat_uses_the_template(model: Path) -> None:
    with Engine(model, cache="50%") as engine:
        text, _, _ = engine.render([{"role": "user", "content": "Hello"}])
        assert "<|im_start|>user" in text
        list(engine.chat([{"role": "user", "content": "Hello"}], max_tokens=4))
        assert engine.stats()["n_prompt"] > 4


def test_cancelling_keeps_the_engine_usable(model: Path) -> None:
    with Engine(model, cache="50%") as engine:
        stream = engine.generate(PROMPT, max_tokens=50, temperature=0)
        next(stream)
        stream.close()
        assert engine.stats()["stop"] == "cancelled"
        assert np.isfinite(engine.evaluate(PROMPT)).all()


def test_progress_can_cancel(model: Path) -> None:
    with pytest.raises(errors.RemoeError, match="cancelled"):
        Engine(model, cache="50%", progress=lambda fraction: False)


def test_closed_engine_says_so(model: Path) -> None:
    engine = Engine(model, cache="50%")
    engine.close()
    engine.close()
    with pytest.raises(errors.InputError, match="closed"):
        engine.evaluate(PROMPT)


def test_dense_model_runs_and_says_so(tmp_path: Path) -> None:
    path = tiny_dense.make(tmp_path / "dense.gguf")
    with Engine(path) as engine:
        assert engine.streamed is False
        assert any("nothing to stream" in note for note in engine.notes)
        list(engine.generate(PROMPT, max_tokens=3))
        assert engine.stats()["cache"] is None


def test_engines_one_after_another_leave_nothing(model: Path) -> None:
    process = psutil.Process()

    def once() -> None:
        with Engine(model, cache="50%") as engine:
            engine.evaluate(PROMPT)

    for _ in range(3):
        once()
    gc.collect()
    files, threads, rss = process.num_fds(), process.num_threads(), process.memory_info().rss
    for _ in range(10):
        once()
    gc.collect()
    wait_until(lambda: process.num_fds() <= files, "closing files")
    wait_until(lambda: process.num_threads() <= threads, "the end of threads")
    # One engine of this model takes about 14 MiB; ten leaked ones would show.
    assert process.memory_info().rss - rss < 24 << 20


@pytest.mark.parametrize("feature", ["cache", "profile", "past_prompts", "trace"])
def test_a_closed_engine_holds_nothing(model: Path, tmp_path: Path, feature: str) -> None:
    """Whoever still has it has neither the cache nor its files; without anybody it goes itself."""
    settings = {"cache": "auto"} if feature == "cache" else {feature: tmp_path / "file"}
    files = psutil.Process().num_fds()
    engine = Engine(model, **{"cache": "50%", **settings})
    engine.generate(PROMPT, max_tokens=2).read()
    native = weakref.ref(engine.native)
    engine.close()
    gc.collect()
    assert native() is None
    wait_until(lambda: psutil.Process().num_fds() <= files, "closing files")
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_two_engines_at_once(model: Path) -> None:
    with Engine(model, cache="50%") as one, Engine(model, cache="25%") as two:
        assert np.array_equal(one.evaluate(PROMPT), two.evaluate(PROMPT))


def test_a_trace_of_what_is_not_streamed_is_refused_before_loading(
    model: Path, tmp_path: Path
) -> None:
    seen: list[float] = []

    def progress(fraction: float) -> bool:
        seen.append(fraction)
        return True

    with pytest.raises(errors.InputError, match="nothing to record"):
        Engine(model, stream=False, trace=tmp_path / "t", progress=progress)
    assert not seen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", [True, False])
def test_what_progress_raises_ends_the_loading(model: Path, stream: bool) -> None:
    def progress(fraction: float) -> bool:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Engine(model, stream=stream, progress=progress)
    with Engine(model, stream=stream) as engine:
        assert engine.evaluate(PROMPT).size
