"""Several answers of one engine at a time: their bits, what is used again, who leaves, what fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stock
import tiny_moe
from conversations import ALL, Heard, alone, batch_of, end_alone, join, prompt, run
from remoe_edge import Engine
from remoe_edge.engine.conversation import Conversation
from remoe_edge.errors import BudgetError, InputError, ModelError, ReadError
from remoe_edge.native import _core

ALL_VALUES = (
    1 << 20
)  # log probabilities of every token: two answers that have the same have the same bits
N = 6
LENGTHS = (1, 7, 70, 33)
# Plain attention, and recurrent layers; all others with --run-slow.
QUICK = ("qwen3moe", "qwen3next")
EACH_ARCH = [
    pytest.param(arch, marks=() if arch in QUICK else pytest.mark.slow) for arch in tiny_moe.ARCHS
]


class Models(dict[str, Path]):
    """Make a model of an architecture when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, arch: str) -> Path:
        quants = ("Q4_K", "Q8_0", "MXFP4")
        quant = "Q8_0" if arch in QUICK else quants[tiny_moe.ARCHS.index(arch) % 3]
        self[arch] = tiny_moe.make(self._folder / f"{arch}.gguf", arch, quant)
        return self[arch]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    yield Models(tmp_path_factory.mktemp("batching"))
    end_alone()


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Path:
    return models["qwen3moe"]


def same(answer: Any, reference: Any) -> None:
    assert answer.token_ids == reference.token_ids
    assert answer.logprobs == reference.logprobs
    assert answer.finish_reason == reference.finish_reason


# --- bits ---


@pytest.mark.parametrize("arch", EACH_ARCH)
def test_in_slices_each_answer_is_the_one_made_alone(models: dict[str, Path], arch: str) -> None:
    path, asked = models[arch], {"logprobs": ALL_VALUES, "max_tokens": N}
    references = [alone(path, [(prompt(n, i), asked)]) for i, n in enumerate(LENGTHS)]
    for length, n_places in ((1, 2), (3, 4)):
        with batch_of(path, n_places, length=length) as batch:
            found, waiting = [], list(enumerate(LENGTHS))
            while waiting or batch.conversations:
                if waiting and batch.n_free:  # the others come while these are answered
                    i, n = waiting.pop(0)
                    found.append(join(batch, prompt(n, i), N, logprobs=ALL_VALUES)[0])
                batch.step()
        for answer, reference in zip(found, references, strict=True):
            same(answer, reference)


@pytest.mark.parametrize("arch", EACH_ARCH)
@pytest.mark.parametrize("cache", ["100%", "50%"])
def test_in_a_group_the_bits_are_stocks_for_the_same_batch(
    models: dict[str, Path], arch: str, cache: str
) -> None:
    path = models[arch]
    prompts = [tuple(prompt(n, i)) for i, n in enumerate(LENGTHS)]
    reference = stock.run(
        path, prompts[0], N - 1, n_threads=1, use_extra_bufts=False, n_ctx=512,
        beside=tuple(prompts[1:]),
    )  # fmt: skip
    with batch_of(path, 4, group=ALL, length=64, cache=cache) as batch:
        rows: list[np.ndarray] = []
        loaded = batch._loaded
        read = loaded.row

        def keep(index: int) -> Any:
            row = read(index)
            assert row is not None
            rows.append(row.copy())
            return row

        loaded.row = keep  # type: ignore[method-assign]
        begun = [join(batch, each, N)[0] for each in prompts]
        run(batch)
    steps = np.stack(rows).reshape(N, 4, -1)  # each prompt's first, then step by step
    fed = [[each.token_ids[n] for each in begun] for n in range(N - 1)]
    assert fed == list(map(list, reference.tokens))
    assert (steps.view(np.uint32) == reference.logits.view(np.uint32)).all()


def test_sampling_is_each_answers_own(model: Path) -> None:
    ways: list[dict[str, Any]] = [
        {"temperature": 1.5, "seed": 7},
        {"temperature": 0, "logit_bias": {9: 100}},
        {"temperature": 1, "seed": 3, "repeat_penalty": 1.3, "presence_penalty": 0.5},
    ]
    references = [alone(model, [(prompt(9), {"max_tokens": N, **way})]) for way in ways]
    assert len({tuple(each.token_ids) for each in references}) == 3
    with batch_of(model, 3, length=1) as batch:
        found = [join(batch, prompt(9), N, **way) for way in ways]
        run(batch)
    for (answer, heard), reference in zip(found, references, strict=True):
        same(answer, reference)
        assert heard.text == answer.text == reference.text
        assert heard.n_ends == 1


# --- what is used again ---


@pytest.mark.parametrize("arch", [*QUICK, "gpt-oss", "deepseek2"])
def test_a_next_turn_computes_what_is_new(models: dict[str, Path], arch: str) -> None:
    path, asked = models[arch], {"logprobs": ALL_VALUES, "max_tokens": N}
    with batch_of(path, 3) as batch:
        first = join(batch, prompt(50), N)[0]
        other = join(batch, prompt(40, 1), N)[0]
        run(batch)
        # The last token was given out and not computed.
        turn = [*prompt(50), *first.token_ids, 9, 8, 7]
        second = join(batch, turn, N, logprobs=ALL_VALUES)[0]
        assert (second.id, second.n_reused) == (first.id, 50 + N - 1)
        run(batch)
    assert other.id != first.id
    same(second, alone(path, [(prompt(50), {"max_tokens": N}), (turn, asked)]))


def test_a_next_turn_without_the_reasoning_is_known_by_what_it_is_said_to_be(model: Path) -> None:
    asked = prompt(50)
    with batch_of(model, 3) as batch:
        first = join(batch, asked, N)[0]
        run(batch)
        # Two of the tokens that opened the answer are not in the history, nor is its reasoning.
        turn = [*asked[:-2], *first.token_ids[3:], 9, 8]
        assert join(batch, turn, N)[0].n_reused == 0
        run(batch)
        begun = join(batch, turn, N, goes_on=True, logprobs=ALL_VALUES)[0]
        assert (begun.id, begun.n_reused) == (first.id, 48)
        run(batch)
    same(
        begun,
        alone(
            model, [(asked, {"max_tokens": N}), (turn, {"logprobs": ALL_VALUES, "max_tokens": N})]
        ),
    )


def test_a_common_beginning_is_shared_in_whole_pieces(model: Path) -> None:
    system, asked = prompt(70), {"logprobs": ALL_VALUES, "max_tokens": N}
    with batch_of(model, 3, n_batch=32) as batch:
        first = join(batch, [*system, 1, 2, 3], N)[0]
        while first.prompts:
            batch.step()
        # While the first still runs; and again where a place is taken over.
        others = [join(batch, [*system, *prompt(n, n)], N, logprobs=ALL_VALUES)[0] for n in (3, 9)]
        run(batch)
        others.append(join(batch, [*system, *prompt(3, 3)], N, logprobs=ALL_VALUES)[0])
        run(batch)
        assert (first.n_reused, [each.n_reused for each in others]) == (0, [64, 64, 64])
        assert join(batch, prompt(20), N)[0].n_reused == 0
        run(batch)
    for n, answer in zip((3, 9, 3), others, strict=True):
        same(answer, alone(model, [([*system, *prompt(n, n)], asked)], n_batch=32))


def test_a_state_that_cannot_be_shared_is_computed_anew(models: dict[str, Path]) -> None:
    system, asked = prompt(70), {"logprobs": ALL_VALUES, "max_tokens": N}
    with batch_of(models["qwen3next"], 2, n_batch=32) as batch:
        assert "cannot be" in batch.why_not_shared
        join(batch, [*system, 1], N)
        run(batch)
        answer = join(batch, [*system, 2], N, logprobs=ALL_VALUES)[0]
        assert answer.n_reused == 0
        run(batch)
    same(answer, alone(models["qwen3next"], [([*system, 2], asked)], n_batch=32))


# --- coming and going ---


def test_who_is_cancelled_leaves_before_the_next_token(model: Path) -> None:
    with batch_of(model, 2, group=ALL) as batch:
        gone, heard = join(batch, prompt(9), 50)
        stays, _ = join(batch, prompt(9, 1), N)
        for _ in range(4):
            batch.step()
        n = gone.stats.n_generated
        thread = threading.Thread(target=gone.cancel)
        thread.start()
        thread.join()
        batch.step()
        assert (gone.finish_reason, gone.stats.n_generated) == ("cancelled", n)
        assert (batch.n_free, heard.n_ends) == (1, 1)
        run(batch)
        assert batch.n_free == 2
    same(stays, alone(model, [(prompt(9, 1), {"max_tokens": N})]))


def failing_for(batch: Any, place: int, error: Exception) -> None:
    """Have every step fail that has a token of that place."""
    steps = batch._batch
    decode = steps.decode

    def fails(llama: Any) -> None:
        if place in steps._place[: steps._n]:
            raise error
        decode(llama)

    steps.decode = fails


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen3next"])
@pytest.mark.parametrize("group", [1, ALL])
def test_an_error_is_that_answers_alone(models: dict[str, Path], arch: str, group: int) -> None:
    path = models[arch]
    with batch_of(path, 3, group=group) as batch:
        begun = [join(batch, prompt(9 + i, i), N) for i in range(3)]
        while any(each.prompts for each, _ in begun):
            batch.step()
        failing_for(batch, 1, ReadError("layer 1, expert 3: read failed"))
        run(batch)
        assert batch.n_free == 3
        del batch._batch.decode
        last = join(batch, prompt(9), N)[0]
        run(batch)
    assert isinstance(begun[1][1].error, ReadError)
    assert begun[1][0].finish_reason == "error"
    for i in (0, 2):
        assert begun[i][1].error is None
        assert (
            begun[i][0].token_ids == alone(path, [(prompt(9 + i, i), {"max_tokens": N})]).token_ids
        )
    assert last.token_ids == begun[0][0].token_ids


def test_a_real_failure_of_storage(model: Path) -> None:
    path_bytes = model.stat().st_size
    with batch_of(model, 2, group=ALL, cache="30%") as batch:
        begun = [join(batch, prompt(30, i), N) for i in range(2)]
        while any(each.prompts for each, _ in begun):
            batch.step()
        native = batch._loaded.native
        assert native is not None
        native.set_faults(_core.FaultPlan(range_file=0, range_bytes=path_bytes))
        run(batch)
        native.set_faults(_core.FaultPlan())
        errors = [heard.error for _, heard in begun]
        assert any(isinstance(each, ReadError) for each in errors)
        assert all(each is None or isinstance(each, ReadError) for each in errors)
        answer = join(batch, prompt(30), N)[0]
        run(batch)
    assert answer.token_ids == alone(model, [(prompt(30), {"max_tokens": N})]).token_ids


def test_a_listener_that_fails_ends_its_answer(model: Path) -> None:
    class Fails(Heard):
        def piece(self, text: str) -> None:
            raise ValueError("broken")

    with batch_of(model, 2) as batch:
        fails = Fails()
        batch.join(prompt(5), fails, max_tokens=50, temperature=0)
        stays = join(batch, prompt(9), N)[0]
        run(batch)
    assert isinstance(fails.error, ValueError)
    assert len(stays.token_ids) == N


def test_what_cannot_be_answered_is_refused_and_takes_no_place(model: Path) -> None:
    with batch_of(model, 2) as batch:
        for tokens, settings in (
            ([], {}), ([10**9], {}), (prompt(600), {}), (prompt(3), {"temperature": -1}),
            (prompt(3), {"max_tokens": -1}),
        ):  # fmt: skip
            with pytest.raises(InputError):
                batch.join(tokens, Heard(), **settings)
        begun = [join(batch, prompt(3, i), N) for i in range(2)]
        with pytest.raises(InputError, match="all 2 places"):
            join(batch, prompt(3), N)
        run(batch)
        none, heard = join(batch, prompt(3), 0)
        run(batch)
        assert (none.finish_reason, none.token_ids, heard.n_ends) == ("length", [], 1)
    assert all(len(each.token_ids) == N for each, _ in begun)


def test_a_full_context_ends_an_answer(model: Path) -> None:
    with batch_of(model, 2, n_ctx=256) as batch:
        answer, _ = join(batch, prompt(250), 100)
        run(batch)
    assert (answer.finish_reason, answer.stats.stop) == ("length", "context")
    same(answer, alone(model, [(prompt(250), {"max_tokens": 100})], n_ctx=256))


def test_nonsense_is_that_answers_error(model: Path) -> None:
    with batch_of(model, 2, group=ALL) as batch:
        begun = [join(batch, prompt(9, i), N) for i in range(2)]
        while any(each.prompts for each, _ in begun):
            batch.step()
        loaded = batch._loaded
        read = loaded.row
        nonsense = np.full(tiny_moe.N_VOCAB, np.nan, np.float32)
        loaded.row = lambda index: nonsense if index == 0 else read(index)  # type: ignore[method-assign]
        batch.step()
        loaded.row = read  # type: ignore[method-assign]
        run(batch)
    assert isinstance(begun[0][1].error, ModelError)
    assert begun[1][0].finish_reason == "length"


# --- the engine around it ---


def test_the_engine_is_the_batchs_until_it_is_closed(model: Path) -> None:
    with Engine(model, cache="50%", n_ctx=256, threads=1, parallel=2) as engine:
        before = engine.generate(prompt(9), temperature=0, max_tokens=N)
        before.read()
        batch = engine.batch()
        with pytest.raises(InputError):
            engine.generate("x")
        with pytest.raises(InputError):
            engine.batch()
        with pytest.raises(InputError):
            engine.evaluate([1, 2])
        cut, heard = join(batch, prompt(9), 50)
        batch.step()
        batch.close()
        batch.close()
        assert (cut.finish_reason, heard.n_ends) == ("cancelled", 0)
        after = engine.generate(prompt(9), temperature=0, max_tokens=N)
        after.read()
        assert after.token_ids == before.token_ids
        last = engine.batch()
    with pytest.raises(InputError, match="closed"):
        last.step()
    last.close()


def test_closing_the_engine_ends_a_step(model: Path) -> None:
    engine = Engine(model, cache="50%", n_ctx=256, threads=1, parallel=2)
    batch = engine.batch()
    join(batch, prompt(9), 200)
    batch.step()
    thread = threading.Thread(target=engine.close)
    thread.start()
    with pytest.raises(InputError, match="closed"):
        while True:
            batch.step()
    thread.join()
    batch.close()


def test_memory_for_all_contexts_is_counted_before(model: Path) -> None:
    with pytest.raises(BudgetError, match="256 contexts of .* lower --parallel or --ctx"):
        Engine(model, n_ctx=1 << 22, parallel=256)
    with pytest.raises(InputError, match="parallel"):
        Engine(model, parallel=257)


def test_what_a_step_costs_is_shared(model: Path) -> None:
    class Keeps:
        def __init__(self) -> None:
            self.steps: list[Any] = []
            self.answers: list[Any] = []

        def on_load(self, facts: Any) -> None:
            assert facts["settings"]["parallel"] == 2

        def on_begin(self, n_prompt: int) -> None: ...
        def on_close(self) -> None: ...

        def on_step(self, step: Any) -> None:
            self.steps.append(step)

        def on_answer(self, answer: Any) -> None:
            self.answers.append(answer)

    keeps = Keeps()
    with batch_of(model, 2, group=ALL, cache="40%") as batch:
        batch._loaded.observers.add(keeps, batch._loaded.facts())
        begun = [join(batch, prompt(9, i), N)[0] for i in range(2)]
        before = batch._loaded.counts()
        run(batch)
        after = batch._loaded.counts()
    misses = after["misses"] - before["misses"]
    assert misses > 0
    assert abs(sum(each.stats.misses for each in begun) - misses) <= 2  # shares are rounded
    assert sum(each.misses for each in keeps.steps) <= misses + 1
    phases = [(each.phase, each.n_tokens) for each in keeps.steps]
    assert phases == [("prefill", 9)] * 2 + [("decode", 2)] * (N - 1)
    assert {each.stop for each in keeps.answers} == {"length"}
    assert all(len(each.stats.token_ms) == N - 1 for each in begun)
    assert isinstance(begun[0], Conversation)
