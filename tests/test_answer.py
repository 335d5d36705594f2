"""An answer as a program uses it: pieces, then what came of it, and arguments that make no sense."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import remoe_edge
import tiny_moe
from engines import Onlooker
from remoe_edge import Answer, Engine, InputError
from remoe_edge.engine.channels import PLAIN
from remoe_edge.engine.stop_strings import StopStrings
from remoe_edge.native import llama_cpp

PROMPT = [11, 48, 85, 122, 159, 196, 38]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    model = tiny_moe.make(tmp_path_factory.mktemp("answer") / "m.gguf", "qwen3moe", "Q8_0")
    with Engine(model, cache="50%", n_ctx=256) as opened:
        yield opened


def test_an_answer_holds_what_came_of_it(engine: Engine) -> None:
    answer = engine.generate(PROMPT, **GREEDY)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], None)
    first = next(answer)
    assert answer.finish_reason is None
    rest = "".join(answer)
    assert first
    assert answer.text == first + rest
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == len(answer.token_ids) == answer.stats.n_generated
    assert answer.usage.total_tokens == len(PROMPT) + len(answer.token_ids)
    assert answer.finish_reason == ("length" if len(answer.token_ids) == 12 else "stop")
    assert answer.stats.misses + answer.stats.hits > 0
    assert answer.stats is engine.answer is engine.stats().answer
    assert answer.logprobs is None
    assert list(answer) == []  # it has been read


def test_every_end_has_its_reason(engine: Engine) -> None:
    whole = engine.generate(PROMPT, **GREEDY).read()
    mark = whole[3:5]
    stopped = engine.generate(PROMPT, stop=mark, **GREEDY)
    assert stopped.read() == whole[: whole.find(mark)]
    assert (stopped.finish_reason, stopped.stats.stop) == ("stop", "stop")
    short = engine.generate(PROMPT, temperature=0, max_tokens=1)
    short.read()
    assert (short.finish_reason, len(short.token_ids)) == ("length", 1)
    nothing = engine.generate(PROMPT, max_tokens=0)
    assert (nothing.read(), nothing.finish_reason) == ("", "length")
    full = engine.generate([7] * 250, temperature=0, max_tokens=None)
    full.read()
    assert full.finish_reason in ("length", "stop")
    assert full.stats.stop in ("context", "end")
    left = engine.generate(PROMPT, **GREEDY)
    next(left)
    left.close()
    assert (left.finish_reason, list(left)) == ("cancelled", [])


def test_an_end_token_ends_it_and_counts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    third = engine.generate(PROMPT, **GREEDY)
    third.read()
    end = third.token_ids[2]
    before = third.token_ids.index(end)
    monkeypatch.setattr(engine._loaded, "is_end", lambda token: token == end)
    answer = engine.generate(PROMPT, **GREEDY)
    answer.read()
    assert (answer.finish_reason, answer.stats.stop) == ("stop", "end")
    assert answer.token_ids == third.token_ids[: before + 1]


def test_log_probabilities_are_those_of_the_logits(engine: Engine) -> None:
    answer = engine.generate(PROMPT, logprobs=3, **GREEDY)
    answer.read()
    found = answer.logprobs
    assert found is not None
    assert [each.token_id for each in found] == answer.token_ids
    logits = engine.evaluate(PROMPT).astype(np.float64)
    expected = logits - logits.max()
    expected -= np.log(np.exp(expected).sum())
    first = found[0]
    assert first.logprob == pytest.approx(expected[first.token_id], abs=1e-5)
    assert [token for token, _ in first.top] == np.argsort(-expected, kind="stable")[:3].tolist()
    assert first.top[0] == (first.token_id, first.logprob)  # greedy took the likeliest
    assert all(each.logprob <= 0 for each in found)
    only = engine.generate(PROMPT, logprobs=0, **GREEDY)
    only.read()
    assert [each.top for each in only.logprobs or []] == [()] * len(only.token_ids)
    assert only.text == answer.text  # asking changes nothing


def test_a_block_ends_the_answer(engine: Engine) -> None:
    with engine.generate(PROMPT, **GREEDY) as answer:
        next(answer)
    assert answer.finish_reason == "cancelled"
    assert engine.generate(PROMPT, **GREEDY).read()


def test_the_seed_is_the_answers_own(engine: Engine) -> None:
    alone = engine.generate(PROMPT, temperature=1, max_tokens=12, seed=5).read()
    first = engine.generate(PROMPT, temperature=1, max_tokens=12, seed=5)
    engine.generate(PROMPT, temperature=1, max_tokens=12, seed=6)  # asked for, and never read
    assert first.read() == alone


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 2.5), ("max_tokens", "9"), ("max_tokens", True),
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", "hot"), ("temperature", None), ("temperature", 10**400),
        ("top_k", -1), ("top_k", 2**31), ("top_k", 1.5), ("top_k", None),
        ("top_p", -0.1), ("top_p", 1.1), ("top_p", math.nan), ("min_p", 2), ("min_p", -1),
        ("repeat_penalty", 0), ("repeat_penalty", -1), ("repeat_penalty", math.inf),
        ("seed", -1), ("seed", 2**32 - 1), ("seed", 1.0), ("seed", "x"),
        ("stop", ""), ("stop", [""]), ("stop", ["a", ""]), ("stop", [3]), ("stop", 3),
        ("stop", b"END"), ("stop", [None]),
        ("logprobs", -1), ("logprobs", True), ("logprobs", 1.5),
        ("grammar", 'root ::= "a"'),
    ],
)  # fmt: skip
def test_an_argument_that_makes_no_sense_is_refused_by_name(
    engine: Engine, name: str, value: Any
) -> None:
    with pytest.raises(InputError, match=name):
        engine.generate(PROMPT, **{name: value})


@pytest.mark.parametrize("text", ["root ::= (", "", "nonsense", "root ::= missing"])
def test_a_grammar_that_does_not_parse_is_refused(engine: Engine, text: str) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string(text, verbose=False)
    with pytest.raises(InputError, match="grammar"):
        engine.generate(PROMPT, grammar=grammar)
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "ab" "c"', verbose=False)
    assert engine.generate(PROMPT, grammar=grammar, **GREEDY).read() == "abc"


@pytest.mark.parametrize("prompt", ["", [], [-1], [10**9], [1.5], ["a"], b"text", [None], [2**70]])
def test_a_prompt_that_makes_no_sense_is_refused(engine: Engine, prompt: Any) -> None:
    with pytest.raises(InputError, match="prompt|token"):
        engine.generate(prompt)
    if prompt != "":
        with pytest.raises(InputError, match="token"):
            engine.evaluate(prompt)


def test_numbers_of_numpy_are_numbers(engine: Engine) -> None:
    plain = engine.generate(PROMPT, **GREEDY).read()
    answer = engine.generate(
        np.array(PROMPT, np.int32),
        max_tokens=np.int64(12),
        temperature=np.float32(0),  # type: ignore[arg-type]
    )
    assert answer.read() == plain


def test_stop_is_one_string_or_several(engine: Engine) -> None:
    whole = engine.generate(PROMPT, **GREEDY).read()
    mark = whole[4:6]
    cut = whole[: whole.find(mark)]
    for stop in (mark, [mark], (mark, "\0never"), {mark: 1}):
        assert engine.generate(PROMPT, stop=stop, **GREEDY).read() == cut  # type: ignore[arg-type]
    for nothing in (None, (), []):
        assert engine.generate(PROMPT, stop=nothing, **GREEDY).read() == whole


def test_stop_strings_over_pieces_and_half_characters() -> None:
    text = StopStrings(["END", "§§"], PLAIN.reader())
    given = [text.take(5, each) for each in (b"one E", b"N", b"x \xc2", b"\xa7", b"!E", b"ND more")]
    assert "".join(given) == "one ENx §!"
    assert text.found
    assert text.rest() == ""
    held = StopStrings(["END"], PLAIN.reader())
    assert held.take(5, b"stop EN") == "stop "
    assert held.rest() == "EN"
    assert StopStrings([], PLAIN.reader()).take(5, "é".encode()) == "é"
    half = StopStrings([], PLAIN.reader())
    assert half.take(5, b"\xc3") == ""
    assert half.rest() == "\ufffd"


def test_statistics_are_typed_and_a_mapping_for_one_version(engine: Engine) -> None:
    answer = engine.generate(PROMPT, **GREEDY)
    answer.read()
    stats = engine.stats()
    plain = stats.to_dict()
    assert stats.cache is not None
    assert stats.cache.slots == plain["cache"]["slots"] == stats["cache"]["slots"]
    assert dict(**stats) == plain
    assert plain["n_generated"] == answer.stats.n_generated
    assert plain["cache"]["misses"] == answer.stats.misses


def test_errors_come_from_the_package() -> None:
    for name in ("InputError", "ModelError", "BudgetError", "ReadError", "UnsupportedError"):
        assert issubclass(getattr(remoe_edge, name), remoe_edge.RemoeError)
    with pytest.raises(remoe_edge.InputError, match="no model"):
        Engine("/nowhere/none.gguf")


# --- what a server needs ---


def test_a_bias_is_added_to_logits(engine: Engine) -> None:
    usual = engine.generate(PROMPT, **GREEDY)
    usual.read()
    first = usual.token_ids[0]
    banned = engine.generate(PROMPT, logit_bias={first: -100}, logprobs=1, **GREEDY)
    banned.read()
    assert first not in banned.token_ids
    assert banned.logprobs is not None
    assert banned.logprobs[0].top[0][0] == first  # they are the model's own
    only = engine.generate(PROMPT, logit_bias={first: 99.5}, **GREEDY)
    only.read()
    assert only.token_ids == [first] * 12
    none = engine.generate(PROMPT, logit_bias={}, **GREEDY)
    assert none.read() == usual.text
    for wrong in ({10**6: 1}, {-1: 1}, {1: math.nan}, {1: "x"}, {"x": 1}, [1]):
        with pytest.raises(InputError):
            engine.generate(PROMPT, logit_bias=wrong, **GREEDY)  # type: ignore[arg-type]


def test_penalties_keep_tokens_apart(engine: Engine) -> None:
    first = engine.generate(PROMPT, temperature=0, max_tokens=1)
    first.read()
    liked = {first.token_ids[0]: 20.0}
    again = engine.generate(PROMPT, logit_bias=liked, **GREEDY)
    again.read()
    assert len(set(again.token_ids)) == 1
    for penalty in ({"frequency_penalty": 15.0}, {"presence_penalty": 50.0}):
        apart = engine.generate(PROMPT, logit_bias=liked, **penalty, **GREEDY)
        apart.read()
        assert len(set(apart.token_ids)) > 1, penalty
    for name in ("frequency_penalty", "presence_penalty"):
        with pytest.raises(InputError, match=name):
            engine.generate(PROMPT, **{name: math.inf})  # type: ignore[arg-type]


def test_the_stop_string_that_was_found_is_told(engine: Engine) -> None:
    whole = engine.generate(PROMPT, **GREEDY)
    text = whole.read()
    assert whole.stop_string is None
    answer = engine.generate(PROMPT, stop=["\0never", text[3:5]], **GREEDY)
    answer.read()
    assert answer.stop_string == text[3:5]


def test_another_thread_cancels(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._loaded, "is_end", lambda token: False)
    answer = engine.generate(PROMPT, max_tokens=None, temperature=0)
    next(answer)
    thread = threading.Thread(target=answer.cancel)
    thread.start()
    thread.join()
    n_before = answer.stats.n_generated
    answer.read()
    assert (answer.finish_reason, answer.stats.n_generated) == ("cancelled", n_before)
    answer.cancel()  # it has ended: nobody's step is stopped
    assert engine.generate(PROMPT, **GREEDY).read()
    unread = engine.generate(PROMPT, **GREEDY)
    unread.cancel()
    assert (unread.read(), unread.finish_reason, unread.stats.n_generated) == ("", "cancelled", 0)


def test_a_signal_cancels_while_another_does(engine: Engine) -> None:
    """A handler runs in the thread that is in `cancel` already, and waits for nobody."""
    answer = engine.generate("a", max_tokens=64, temperature=0)

    def hung(number: int, frame: object) -> None:
        raise TimeoutError

    def interrupt() -> None:  # what a step is stopped with, while another signal comes
        answer._produced.runs_with(None)
        signal.raise_signal(signal.SIGUSR1)

    before = {
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda number, frame: answer.cancel()),
        signal.SIGALRM: signal.signal(signal.SIGALRM, hung),
    }
    try:
        next(answer)
        answer._produced.runs_with(interrupt)
        signal.alarm(60)
        answer.cancel()
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (list(answer), answer.finish_reason) == ([], "cancelled")


def test_a_prompt_is_cancelled_within_its_step(engine: Engine) -> None:
    """The step is stopped as it computes: an observer is told of none."""
    heard: list[str] = []
    looking = Onlooker(lambda: heard.append("step"))
    engine.add_observer(looking)
    answer = engine.generate([7] * 240, **GREEDY)
    reader = threading.Thread(target=answer.read)
    reader.start()
    while reader.is_alive():
        answer.cancel()
        reader.join(0.001)
    engine.remove_observer(looking)
    assert answer.finish_reason == "cancelled"
    assert answer.stats.n_generated <= 1
    assert engine.generate(PROMPT, **GREEDY).read()
