"""Guesses of a model's own heads: the text is the one without them, and their experts are streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from drafting import N_ALL, TEXT, answered
from remoe_edge import Engine
from remoe_edge.engine import drafts
from remoe_edge.engine.draft_governor import Governor
from remoe_edge.engine.drafts import PromptLookup, governors_of
from remoe_edge.engine.heads import Heads
from remoe_edge.errors import ReadError, UnsupportedError
from remoe_edge.native import _core, llama_cpp
from remoe_edge.routing.trace import read_trace

QUANTS = {"glm4moe": "Q4_0", "deepseek2-v3": "Q8_0", "cohere2moe": "Q8_0", "hy_v3": "Q8_0"}
LONG = [(7 * i * i + 3 * i) % 300 for i in range(90)]  # repeats nothing, and fills experts' tiles


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {
        arch: tiny_moe.make(folder / f"{arch}.gguf", arch, quant, n_nextn=1)
        for arch, quant in QUANTS.items()
    }


@pytest.fixture
def only_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the heads guess at every step, and the text never."""
    monkeypatch.setattr(drafts, "Governor", lambda always: Governor(always=True))
    monkeypatch.setattr(PromptLookup, "guess", lambda self, n_most: [])


@pytest.fixture
def right_heads(
    only_heads: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[int], int], None]:
    """Have their guesses replaced by an answer that is known, with some wrong: they run all the same."""

    def use(known: list[int], n_prompt: int) -> None:
        run = Heads._run

        def told(self: Heads, pairs: list[Any]) -> int:
            run(self, pairs)
            at = pairs[-1].position + 1 - n_prompt
            return known[at] ^ (at % 5 == 4) if at < len(known) else 0

        monkeypatch.setattr(Heads, "_run", told)

    return use


def opened(path: Path, draft: str, **settings: Any) -> Engine:
    return Engine(path, cache="40%", threads=1, n_ctx=192, draft=draft, **settings)


@pytest.mark.parametrize("arch", QUANTS)
@pytest.mark.parametrize(
    "prompt",
    [pytest.param(TEXT, id="short", marks=pytest.mark.slow), pytest.param(LONG, id="long")],
)
def test_the_answer_has_the_bits_of_the_plain_one(
    models: dict[str, Path],
    arch: str,
    prompt: list[int],
    right_heads: Callable[[list[int], int], None],
) -> None:
    with opened(models[arch], "off") as engine:
        wanted = answered(engine, prompt, temperature=0)
    right_heads(wanted.token_ids, len(prompt))
    with opened(models[arch], "mtp") as engine:
        drafted = answered(engine, prompt, temperature=0)
    assert drafted.token_ids == wanted.token_ids
    assert drafted.logprobs == wanted.logprobs
    assert drafted.stats.guessed > drafted.stats.guessed_right > 15


@pytest.mark.parametrize("settings", [{"seed": 3, "temperature": 1.2}, {"repeat_penalty": 1.4}])
def test_so_has_a_sampled_one(
    models: dict[str, Path], only_heads: None, settings: dict[str, Any]
) -> None:
    settings = {"seed": 1, **settings}
    answers = []
    for draft in ("off", "mtp"):
        with opened(models["glm4moe"], draft) as engine:
            answers.append(answered(engine, **settings))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == answers[1].logprobs
    assert answers[1].stats.guessed > 20


@pytest.fixture
def drafting(models: dict[str, Path], only_heads: None) -> Iterator[Engine]:
    with opened(models["glm4moe"], "mtp") as engine:
        yield engine


def test_their_experts_are_streamed_and_their_steps_are_no_tokens(
    models: dict[str, Path], drafting: Engine
) -> None:
    drafted = answered(drafting, temperature=0)
    native = drafting.native
    assert native is not None
    uses = native.uses().reshape(native.n_layers, native.n_experts)
    assert uses[-1].sum() > 20  # of the layer that predicts
    with opened(models["glm4moe"], "off") as engine:
        plain = answered(engine, temperature=0)
        assert engine.native is not None
        uses = engine.native.uses().reshape(native.n_layers, native.n_experts)
        assert uses[-1].sum() == 0
        assert uses[:-1].sum() > 0
    assert drafted.token_ids == plain.token_ids


def test_a_trace_leaves_their_steps_out(
    models: dict[str, Path], only_heads: None, tmp_path: Path
) -> None:
    with opened(models["glm4moe"], "mtp", trace=tmp_path / "t") as engine:
        drafted = answered(engine, temperature=0)
        assert engine.native is not None
        assert engine.native.uses().reshape(engine.native.n_layers, -1)[-1].sum() > 0
        n_layers = engine.native.n_layers
    trace = read_trace(tmp_path / "t")
    assert trace.total_tokens == len(TEXT) + len(drafted.token_ids) - 1 + (
        drafted.stats.guessed - drafted.stats.guessed_right
    )
    assert [len(trace.rows(layer)) > 0 for layer in range(n_layers)] == [True] * (n_layers - 1) + [
        False
    ]


def test_they_guess_as_llama_cpp_does_alone(models: dict[str, Path], drafting: Engine) -> None:
    """Held against a context of stock llama.cpp's that is given the same tokens and states."""
    guessed: list[tuple[list[Any], int]] = []
    run = Heads._run

    def kept(self: Heads, pairs: list[Any]) -> int:
        guess = run(self, pairs)
        guessed.append((list(pairs), guess))
        return guess

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heads, "_run", kept)
        answered(drafting, temperature=0, max_tokens=12)
    assert [guess for _, guess in guessed] == stock_guesses(
        models["glm4moe"], [pairs for pairs, _ in guessed]
    )
    assert len({guess for _, guess in guessed}) > 3


def stock_guesses(path: Path, steps: list[list[Any]]) -> list[int]:
    """Run the head's steps in a model that stock llama.cpp has loaded whole."""
    low = llama_cpp.llama_cpp
    from llama_cpp import llama_cpp_ext

    params = low.llama_model_default_params()
    params.load_mtp, params.use_extra_bufts, params.n_gpu_layers = True, False, 0
    model = low.llama_model_load_from_file(str(path).encode(), params)
    asked = low.llama_context_default_params()
    asked.ctx_type, asked.n_ctx, asked.n_threads = 1, 192, 1
    asked.n_threads_batch = 1
    context = low.llama_init_from_model(model, asked)
    llama_cpp_ext.llama_set_embeddings_nextn(context, True, False)
    n_vocab = low.llama_vocab_n_tokens(low.llama_model_get_vocab(model))
    memory = low.llama_get_memory(context)
    guesses = []
    from remoe_edge.engine.step_batch import StepBatch

    batch = StepBatch(64, low.llama_model_n_embd_out(model))
    for pairs in steps:
        low.llama_memory_seq_rm(memory, 0, pairs[0].position, -1)
        batch.clear()
        for pair in pairs:
            batch.add_state(pair.position, pair.token, pair.state)
        batch.decode_in(context)
        row = low.llama_get_logits_ith(context, -1)
        guesses.append(max(range(n_vocab), key=lambda i: row[i]))
    low.llama_free(context)
    low.llama_model_free(model)
    return guesses


def test_after_a_long_rest_they_go_on_from_what_they_saw_last(drafting: Engine) -> None:
    heads = drafting._loaded.heads
    assert heads is not None
    wanted = answered(drafting, temperature=0, max_tokens=100, logprobs=None).token_ids
    governors = governors_of(drafting._loaded)
    governors[1]._always = False
    governors[1].FIRST_PAUSE = 0  # type: ignore[misc]
    governors[1]._wait = 80  # more steps than they are told of later
    found = answered(drafting, temperature=0, max_tokens=100, logprobs=None)
    assert found.token_ids == wanted
    assert found.stats.guessed > 0


def test_the_text_guesses_first(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "Governor", lambda always: Governor(always=True))
    with opened(models["glm4moe"], "off") as engine:
        known = answered(engine, temperature=0).token_ids
    guess = lambda self, n: known[len(self._tokens) - len(TEXT) :][:n]  # noqa: E731
    monkeypatch.setattr(PromptLookup, "guess", guess)
    with opened(models["glm4moe"], "mtp") as engine:
        found = answered(engine, temperature=0)
        assert found.token_ids == known
        assert engine.native is not None
        uses = engine.native.uses().reshape(engine.native.n_layers, -1)
        assert uses[-1].sum() == 0
        assert found.stats.guessed == found.stats.guessed_right > 20


def test_storage_that_fails_under_them_fails_one_answer(drafting: Engine) -> None:
    settings = {"temperature": 0, "logprobs": None, "max_tokens": 12}
    wanted = answered(drafting, **settings).token_ids
    native = drafting.native
    assert native is not None
    failed = 0
    for operation in range(20, 60, 10):
        native.set_faults(_core.FaultPlan(fail_operation=operation))
        try:
            assert answered(drafting, LONG[:20], **settings).token_ids
        except ReadError:
            failed += 1
        native.set_faults(_core.FaultPlan())
        assert answered(drafting, **settings).token_ids == wanted
    assert failed > 0


def test_the_next_turn_and_a_dropped_answer(models: dict[str, Path], drafting: Engine) -> None:
    with opened(models["glm4moe"], "off") as plain:
        first = answered(plain, temperature=0)
        more = [*TEXT, *first.token_ids, 7, 8]
        wanted = answered(plain, more, temperature=0, max_tokens=20)
    begun = drafting.generate(TEXT, max_tokens=30, temperature=0, bos=False)
    for _ in range(5):
        next(begun)
    begun.close()
    assert answered(drafting, temperature=0).token_ids == first.token_ids
    found = answered(drafting, more, temperature=0, max_tokens=20)
    assert (found.token_ids, found.logprobs) == (wanted.token_ids, wanted.logprobs)


def test_their_memory_is_counted(models: dict[str, Path]) -> None:
    sizes = {}
    for draft in ("auto", "mtp"):
        with opened(models["glm4moe"], draft) as engine:
            sizes[draft] = dict(engine._loaded.buffers.n_bytes)
            assert any("used with --draft mtp" in note for note in engine.notes) == (
                draft == "auto"
            )
    assert sizes["mtp"]["KV"] > sizes["auto"]["KV"]
    assert sizes["mtp"]["compute"] > sizes["auto"]["compute"]


def test_with_prefetching_the_text_is_the_same(models: dict[str, Path], only_heads: None) -> None:
    answers = []
    for draft, prefetch in (("off", "off"), ("mtp", "on")):
        with opened(models["glm4moe"], draft, prefetch=prefetch) as engine:
            answers.append(answered(engine, LONG, temperature=0))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == answers[1].logprobs


# --- what is refused ---


def test_a_model_without_heads_is_refused_by_name(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    with pytest.raises(UnsupportedError, match="--draft mtp: .*m.gguf has no layers that predict"):
        Engine(path, cache="50%", draft="mtp")


def test_heads_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "two.gguf", "glm4moe", "Q8_0", n_nextn=2)
    with pytest.raises(UnsupportedError, match="has 2 layers that predict.*one can be used"):
        Engine(path, cache="50%", draft="mtp")
    old = tiny_moe.make(tmp_path / "old.gguf", "deepseek2", "Q8_0", n_nextn=1)
    with pytest.raises(UnsupportedError, match="old.gguf lacks blk.3.attn_q_a.weight"):
        Engine(old, cache="50%", draft="mtp")
    with Engine(path, cache="50%", n_ctx=64, draft="on") as engine:
        assert answered(engine, temperature=0, logprobs=N_ALL).token_ids
