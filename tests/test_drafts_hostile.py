"""Whatever ends, limits or disturbs an answer, a drafted one is the plain one to the last bit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import tiny_moe
from drafting import TEXT, answered, guess
from remoe_edge import Engine
from remoe_edge.engine.draft_governor import MOST_GUESSES
from remoe_edge.engine.drafts import Drafted
from remoe_edge.native import llama_cpp

DIGITS = 'root ::= [0-9 ]+ "."'
WORDS = 'root ::= ("ab" | "cd" | [a-z]{2,9} " ")*'


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    """Give an engine that does not guess and one that does; they share nothing but the file."""
    path = tiny_moe.make(tmp_path_factory.mktemp("drafts") / "m.gguf", "qwen3moe", "Q8_0")
    plain = Engine(path, cache="30%", threads=1, n_ctx=128)
    with plain, Engine(path, cache="30%", threads=1, n_ctx=128, draft="on") as drafting:
        yield plain, drafting


def compared(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Any, Any]:
    """Give the plain answer and the drafted one, which is held to have its bits."""
    plain, drafting = both
    wanted = answered(plain, **settings)
    guess(monkeypatch, wanted.token_ids, wrong_every=4)
    found = answered(drafting, **settings)
    assert found.token_ids == wanted.token_ids
    assert found.text == wanted.text
    assert found.logprobs == wanted.logprobs
    assert found.finish_reason == wanted.finish_reason
    assert found.stop_string == wanted.stop_string
    return wanted, found


def right(answer: Any) -> int:
    return int(answer.stats.guessed_right)


SETTINGS: dict[str, dict[str, Any]] = {
    "top-k": {"seed": 1, "temperature": 1.2, "top_k": 3},
    "one choice": {"seed": 1, "temperature": 1.2, "top_k": 1},
    "top-p": {"seed": 2, "temperature": 2.0, "top_k": 0, "top_p": 0.5, "min_p": 0},
    "min-p": {"seed": 3, "temperature": 0.4, "min_p": 0.3, "top_p": 1.0},
    "hot": {"seed": 4, "temperature": 50.0, "top_k": 0, "top_p": 1.0, "min_p": 0},
    "cold": {"seed": 5, "temperature": 1e-6},
    "repeat penalty": {"temperature": 0, "repeat_penalty": 1.7},
    "a repeat penalty that likes repeating": {"temperature": 0, "repeat_penalty": 0.5},
    "frequency": {"temperature": 0, "frequency_penalty": 1.5},
    "presence": {"seed": 6, "presence_penalty": 2.0, "temperature": 0.8},
    "a negative presence": {"seed": 6, "presence_penalty": -2.0, "frequency_penalty": -1.0},
    "all penalties": {
        "seed": 7, "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    },
    "a bias": {"temperature": 0, "logit_bias": {65: 6.0, 66: 6.0, 67: -100}},
    "few log probabilities": {"seed": 8, "logprobs": 3},
    "the chosen one's alone": {"seed": 8, "logprobs": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_samplers_and_penalties(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, found = compared(both, monkeypatch, **SETTINGS[name])
    assert right(found) > 15


@pytest.mark.parametrize("text", [DIGITS, WORDS])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 9, "temperature": 1.5}])
def test_a_grammar(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, text: str, sampling: Any
) -> None:
    """Wrong guesses break it; they must leave no trace in its state."""
    grammar = llama_cpp.LlamaGrammar.from_string(text, verbose=False)
    _, found = compared(both, monkeypatch, grammar=grammar, logit_bias={46: -100}, **sampling)
    assert right(found) > 5


def test_guesses_that_a_grammar_forbids_are_no_part_of_the_answer(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drafting = both
    free = answered(plain, temperature=0).token_ids
    grammar = llama_cpp.LlamaGrammar.from_string(DIGITS, verbose=False)
    settings = {"grammar": grammar, "temperature": 0, "logit_bias": {46: -100}}
    wanted = answered(plain, **settings)
    guess(monkeypatch, free)
    found = answered(drafting, **settings)
    assert (found.token_ids, found.logprobs) == (wanted.token_ids, wanted.logprobs)
    assert found.stats.guessed > found.stats.guessed_right


def test_a_stop_string_that_ends_within_a_step(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drafting = both
    whole = answered(plain, temperature=0)
    words = plain._loaded.words()
    texts = [words.piece(token).decode("utf-8", "replace") for token in whole.token_ids]
    ends: dict[str, int] = {}
    for i in range(6, 18):
        before, piece = "".join(texts[:i]), texts[i]
        for stop in (piece, texts[i - 1][-1:] + piece[:1]):  # within a token, and over two
            if stop and stop not in before and "�" not in stop:
                ends[stop] = i
    assert len(ends) > 8  # within guesses that were right, and at the token after them
    for stop in ends:
        settings = {"temperature": 0, "logprobs": 9, "stop": [stop, "never there"]}
        _, found = compared(both, monkeypatch, **settings)
        assert found.finish_reason == "stop"
        # What was computed beyond it is no part of the conversation.
        more = [*TEXT, *found.token_ids]
        monkeypatch.undo()
        settings = {"temperature": 0, "logprobs": 9, "max_tokens": 4}
        assert (
            answered(drafting, more, **settings).logprobs
            == answered(plain, more, **settings).logprobs
        )


def test_max_tokens_within_a_step_and_nothing_is_computed_beyond_it(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    compute = Drafted._compute

    def noted(self: Drafted, llama: Any, tokens: list[int]) -> None:
        sizes.append(len(tokens))
        compute(self, llama, tokens)

    for n in range(1, 16):
        sizes.clear()
        monkeypatch.setattr(Drafted, "_compute", noted)
        _, found = compared(both, monkeypatch, temperature=0, logprobs=9, max_tokens=n)
        assert len(found.token_ids) == n
        # All that was computed after the prompt: the tokens but the last, and wrong guesses.
        n_wrong = found.stats.guessed - right(found)
        assert sum(sizes) == n - 1 + n_wrong
        assert max(sizes, default=1) <= 1 + MOST_GUESSES
        monkeypatch.undo()


@pytest.mark.parametrize("n", [1, 5, 7, 9, 13])
def test_a_prompt_that_is_what_the_context_holds(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """The last logits are those of a wrong guess then, not of the prompt's last token."""
    plain, drafting = both
    known = answered(plain, temperature=0, logprobs=None).token_ids
    for k in range(max(0, n - 8), n + 1):
        guess(monkeypatch, known, wrong_every=3)
        answered(drafting, temperature=0, logprobs=None, max_tokens=n)
        monkeypatch.undo()
        again = answered(drafting, [*TEXT, *known[:k]], temperature=0, logprobs=None, max_tokens=5)
        assert again.token_ids == known[k : k + 5]


def test_ctrl_c_within_a_step(both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, drafting = both
    wanted = answered(plain, temperature=0)
    compute = Drafted._compute
    for n in (1, 3):
        guess(monkeypatch, wanted.token_ids)
        n_steps = 0

        def pressed(self: Drafted, llama: Any, tokens: list[int], n: int = n) -> None:
            nonlocal n_steps
            n_steps += 1
            if n_steps == n:
                os.kill(os.getpid(), signal.SIGINT)
            compute(self, llama, tokens)

        monkeypatch.setattr(Drafted, "_compute", pressed)
        answer = drafting.generate(TEXT, bos=False, temperature=0, max_tokens=40)
        with pytest.raises(KeyboardInterrupt):
            answer.read()
        assert answer.stats.stop == "cancelled"
        assert answer.token_ids == wanted.token_ids[: len(answer.token_ids)]
        monkeypatch.undo()
        # It goes on from what the caller has, and from the beginning.
        for k in (len(answer.token_ids), len(answer.token_ids) - 1, 0):
            again = answered(
                drafting, [*TEXT, *wanted.token_ids[:k]], temperature=0, max_tokens=40 - k
            )
            assert again.token_ids == wanted.token_ids[k:]


def test_another_thread_cancels_between_two_guesses(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drafting = both
    wanted = answered(plain, temperature=0)
    guess(monkeypatch, wanted.token_ids)
    answer = drafting.generate(TEXT, bos=False, temperature=0, max_tokens=40)
    for _ in range(4):
        next(answer)
    thread = threading.Thread(target=answer.cancel)
    thread.start()
    thread.join()
    answer.read()
    assert answer.finish_reason == "cancelled"
    assert answer.token_ids == wanted.token_ids[: len(answer.token_ids)]
    assert answered(drafting, temperature=0).logprobs == wanted.logprobs


def test_an_end_that_is_guessed_ends_it(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = answered(both[0], temperature=0).token_ids
    end = known[9]
    assert end not in known[:9]
    for engine in both:
        monkeypatch.setattr(engine._loaded, "is_end", lambda token: token == end)
    monkeypatch.setattr(Engine, "is_end", lambda self, token: False)
    guess(monkeypatch, known, wrong_every=100)
    answers = [answered(engine, temperature=0) for engine in both]
    assert answers[0].token_ids == answers[1].token_ids == known[:10]
    assert answers[1].stats.stop == "end"


def test_side_by_side_nothing_is_drafted_and_that_is_said(both: tuple[Engine, Engine]) -> None:
    batch = both[1].batch()
    assert any("nothing is drafted" in note for note in both[1].notes)
    batch.close()
