"""Reasoning apart from answers: however models mark it, and wherever their tokens cut."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import templates
import tiny_moe
import vocabularies
from command_line import run
from remoe_edge import Engine
from remoe_edge.cli import reasoning as shown_reasoning
from remoe_edge.cli.conversation import Conversation
from remoe_edge.cli.reasoning import ShownReasoning
from remoe_edge.engine import metadata
from remoe_edge.engine.channels import HARMONY, PAIRS, AnswerForm, Channels
from vocabularies import CONTROL, USER_DEFINED, bpe

HI = [{"role": "user", "content": "hi"}]
THINK = PAIRS[0]
MARKERS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")

# What a model writes, and what of it is the answer and the reasoning.
THOUGHTS = [
    ("plain", "plain", ""),
    ("", "", ""),
    (" \n", " \n", ""),
    ("<think>\nwhy\n</think>\n\nso", "so", "why"),
    ("\n<think>why</think>so", "so", "why"),
    ("<think>\n\n</think>\n\nso", "so", ""),
    ("<think>a < b </thin b</think>so <thin", "so <thin", "a < b </thin b"),
    ("<think>never ends\n", "", "never ends"),
    ("</think>so", "so", ""),
    ("<think></think>", "", ""),
    ("a <think> b</think> c", "a <think> b</think> c", ""),  # spelled in an answer
    ("<think>why</think>so </think> <think>x", "so </think> <think>x", "why"),
]
CHANNELS = [
    ("plain", "plain", ""),
    ("<|channel|>final<|message|>so<|return|>", "so", ""),
    ("<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so",
     "so", "why"),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
     "<|start|>assistant<|channel|>final<|message|>so", "so", "a\n\nb"),
    ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", "", "{}"),
    ("<|channel|>analysis<|message|>never ends", "", "never ends"),
    ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}", ""),
    ("<|channel|>final<|message|>a<|end|>b", "ab", ""),
    ("<|channel|>analysis", "", ""),
]  # fmt: skip


def read(form: AnswerForm, pieces: Iterable[tuple[int, str]]) -> tuple[str, str]:
    told: list[str] = []
    reader = form.reader(told.append)
    text = "".join(reader.feed(token, piece) for token, piece in pieces) + reader.end()
    assert "".join(told) == reader.reasoning
    return text, reader.reasoning


def cut(text: str, sizes: list[int]) -> list[tuple[int, str]]:
    pieces, at = [], 0
    for size in [*sizes, len(text)]:
        pieces.append((-1, text[at : at + size]))
        at += size
    return pieces


def as_tokens(text: str, ids: dict[str, int]) -> list[tuple[int, str]]:
    """Write markers as tokens, and each other character alone."""
    pieces: list[tuple[int, str]] = []
    while text:
        marker = next((each for each in ids if text.startswith(each)), None)
        pieces.append((-1, text[0]) if marker is None else (ids[marker], marker))
        text = text[len(marker or "x") :]
    return pieces


@settings(deadline=None)
@given(case=st.sampled_from(THOUGHTS), sizes=st.lists(st.integers(0, 5), max_size=30))
def test_thoughts_in_markers_that_are_text(case: tuple[str, str, str], sizes: list[int]) -> None:
    form = AnswerForm(channels=Channels({}, THINK[:2], THINK))
    assert read(form, cut(case[0], sizes)) == case[1:]


@settings(deadline=None)
@given(case=st.sampled_from(CHANNELS), sizes=st.lists(st.integers(0, 9), max_size=30))
def test_channels_in_markers_that_are_text(case: tuple[str, str, str], sizes: list[int]) -> None:
    form = AnswerForm(channels=Channels({}, HARMONY, None))
    assert read(form, cut(case[0], sizes)) == case[1:]


@pytest.mark.parametrize(("written", "answer", "reasoning"), THOUGHTS[:10])
def test_thoughts_in_markers_that_are_tokens(written: str, answer: str, reasoning: str) -> None:
    ids = {"<think>": 1, "</think>": 2}
    form = AnswerForm(channels=Channels({1: "<think>", 2: "</think>"}, (), THINK))
    assert read(form, as_tokens(written, ids)) == (answer, reasoning)


@pytest.mark.parametrize(("written", "answer", "reasoning"), CHANNELS)
def test_channels_in_markers_that_are_tokens(written: str, answer: str, reasoning: str) -> None:
    ids = {marker: i for i, marker in enumerate(HARMONY)}
    form = AnswerForm(channels=Channels({i: m for m, i in ids.items()}, (), None))
    assert read(form, as_tokens(written, ids)) == (answer, reasoning)
    # A control token has no text.
    silent = [(i, piece if i < 0 else "") for i, piece in as_tokens(written, ids)]
    assert read(form, silent) == (answer, reasoning)


def test_spelled_markers_are_text_where_there_are_tokens() -> None:
    form = AnswerForm(channels=Channels({1: "<think>", 2: "</think>"}, (), THINK))
    written = [(1, "<think>"), *cut("a </think> b", [1] * 9), (2, "</think>"), (-1, "<think>c")]
    assert read(form, written) == ("<think>c", "a </think> b")
    harmony = AnswerForm(channels=Channels({1: "<|channel|>", 2: "<|message|>"}, (), None))
    spelled = [(1, ""), (-1, "final"), (2, ""), (-1, "a <|channel|>analysis<|message|>b")]
    assert read(harmony, spelled) == ("a <|channel|>analysis<|message|>b", "")


def test_a_token_opens_reasoning_in_the_middle_of_an_answer_too() -> None:
    form = AnswerForm(channels=Channels({1: "<think>", 2: "</think>"}, (), THINK))
    written = [(1, ""), (-1, "a"), (2, ""), (-1, "b "), (1, ""), (-1, "c"), (2, ""), (-1, " d")]
    assert read(form, written) == ("b d", "a\n\nc")


def test_a_label_is_no_reasoning() -> None:
    pair = next(each for each in PAIRS if each[2])
    form = AnswerForm(channels=Channels({}, pair[:2], pair))
    for sizes in ([], [1] * 40, [12, 3, 4]):
        written = f"{pair[0]}{pair[2]}why\n{pair[1]}so"
        assert read(form, cut(written, sizes)) == ("so", "why")


def test_reasoning_that_the_prompt_has_opened() -> None:
    form = AnswerForm(channels=Channels({}, THINK[:2], THINK, opened=True))
    assert read(form, cut("why\n</think>\n\nso", [1] * 20)) == ("so", "why")


# --- which models ---


@pytest.mark.parametrize(
    ("template", "specials", "opened"),
    [
        (templates.CHATML, (), None),
        (templates.LLAMA3, (), None),
        (templates.MISTRAL, (), None),
        (templates.QWEN3, ("<think>", "</think>"), False),
        (templates.QWEN3, (), False),
        (templates.DEEPSEEK, ("<think>", "</think>"), True),
    ],
)
def test_channels_come_from_the_template_and_the_vocabulary(
    tmp_path: Path, template: str, specials: tuple[str, ...], opened: bool | None
) -> None:
    path = vocabularies.model(tmp_path / "m.gguf", template, *specials)
    with Engine(path, cache="50%", publish=False) as engine:
        channels = engine.render(HI)[0].form.channels
        assert (None if channels is None else channels.opened) == opened
        if channels is not None:
            assert set(channels.ids.values()) == set(specials)
            assert set(channels.spelled) == {"<think>", "</think>"} - set(specials)


def test_thinking_turned_off_is_not_opened(tmp_path: Path) -> None:
    path = vocabularies.model(tmp_path / "m.gguf", templates.QWEN3)
    with Engine(path, cache="50%", publish=False) as engine:
        prompt, _, _ = engine.render(HI, variables={"enable_thinking": False})
        assert prompt.endswith("</think>\n\n")
        assert prompt.form.channels is not None
        assert not prompt.form.channels.opened


def test_gpt_oss_markers_are_tokens_of_either_kind(tmp_path: Path) -> None:
    kinds = [(marker, CONTROL) for marker in HARMONY] + [("<think>", USER_DEFINED)]
    tokenizer = vocabularies.tokenizer(bpe(tmp_path / "v.gguf", kinds))
    assert all(tokenizer.special(marker) for marker in HARMONY)
    # <|end|> ends a message, not the answer.
    ends = {each.text for each in tokenizer.specials if tokenizer.is_end(each.token)}
    assert ends & {"<|end|>", "<|return|>", "<|call|>"} == {"<|return|>", "<|call|>"}


# --- through the engine and the command line ---


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harmony") / "m.gguf"
    return vocabularies.model(path, templates.HARMONY, *MARKERS)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thinking") / "m.gguf"
    return vocabularies.model(path, templates.QWEN3, "<think>", "</think>")


ANALYSIS = (
    "<|channel|>analysis<|message|>why é<|end|><|start|>assistant<|channel|>final<|message|>so é"
)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a model write what is wanted, whatever it is asked; return the prompts it was given."""

    def say(engine: Engine, *texts: str) -> list[list[int]]:
        prompts: list[list[int]] = []
        answers = iter(texts)

        def generate(tokens: list[int], **_: Any) -> Iterable[int]:
            prompts.append(list(tokens))
            text = next(answers)
            return iter([*engine.tokenize(text, special=True, bos=False), 258])

        monkeypatch.setattr(engine.llama, "generate", generate)
        return prompts

    return say


def test_only_the_final_channel_is_the_answer(harmony: Path, answering: Any) -> None:
    with Engine(harmony, cache="50%", publish=False) as engine:
        answering(engine, ANALYSIS, ANALYSIS, "plain")
        told: list[str] = []
        answer = engine.chat(HI, on_reasoning=told.append)
        assert "".join(answer) == answer.text == "so é"
        assert "".join(told) == answer.reasoning == "why é"
        # Stop strings are looked for in the answer alone.
        answer = engine.chat(HI, stop=["y", " é"])
        assert (answer.read(), answer.stats.stop) == ("so", "stop")
        answer = engine.chat(HI)
        assert (answer.read(), answer.reasoning) == ("plain", "")


def test_a_text_that_is_continued_has_no_channels(thinking: Path, answering: Any) -> None:
    with Engine(thinking, cache="50%", publish=False) as engine:
        answering(engine, "<think>why</think>so")
        answer = engine.generate("hi")
        assert answer.read() in ("<think>why</think>so", "whyso")
        assert answer.reasoning == ""


def test_an_answer_cut_short_keeps_its_reasoning(thinking: Path, answering: Any) -> None:
    with Engine(thinking, cache="50%", publish=False) as engine:
        answering(engine, "<think>why not", "<think>why</think>so it is")
        answer = engine.chat(HI, max_tokens=4)
        assert (answer.read(), answer.stats.stop, answer.reasoning) == ("", "length", "why")
        answer = engine.chat(HI)
        assert next(answer) == "s"
        answer.close()
        assert (answer.text, answer.reasoning) == ("s", "why")


def test_reasoning_is_not_sent_back(harmony: Path, answering: Any) -> None:
    with Engine(harmony, cache="50%", publish=False) as engine:
        prompts = answering(engine, ANALYSIS, ANALYSIS)
        chat = Conversation(engine)
        for question in ("one", "two"):
            pieces, _ = chat.ask(question, max_tokens=64)
            chat.keep(question, "".join(pieces), pieces.reasoning)
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "so é"},
                    {"role": "user", "content": "two"}]  # fmt: skip
        text, _, bos = engine.render(messages)
        assert prompts[1] == engine.tokenize(text, special=True, bos=bos)


def test_a_template_with_a_place_for_reasoning_is_given_it(tmp_path: Path, answering: Any) -> None:
    source = (
        "{% for m in messages %}[{{ m.content }}|{{ m.reasoning_content }}]{% endfor %}"
        "{# <think> #}"
    )
    path = vocabularies.model(tmp_path / "m.gguf", source)
    with Engine(path, cache="50%", publish=False) as engine:
        prompts = answering(engine, "<think>why</think>so", "x")
        chat = Conversation(engine)
        pieces, _ = chat.ask("one", max_tokens=64)
        chat.keep("one", "".join(pieces), pieces.reasoning)
        list(chat.ask("two", max_tokens=8)[0])
        assert prompts[1] == engine.tokenize("[one|][so|why][two|]", bos=False)


def test_what_the_command_shows_of_reasoning(
    harmony: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pipes get the answer alone; JSON has both."""

    def generate(self: Any, tokens: list[int], **_: Any) -> Iterable[int]:
        text = vocabularies.ids(self, ANALYSIS)
        return iter([*text, 258])

    monkeypatch.setattr(metadata.Llama, "generate", generate)
    plain = run(capsys, "chat", "-m", harmony, "-p", "hi")
    assert plain.out == "so é\n"
    assert "why" not in plain.err
    result = json.loads(run(capsys, "chat", "-m", harmony, "-p", "hi", "--json").out)
    assert (result["text"], result["reasoning"]) == ("so é", "why é")


def test_a_terminal_shows_reasoning_dimmed_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(shown_reasoning.sys, "stderr", terminal)
    shown = ShownReasoning()

    def answer() -> Iterable[str]:
        shown("why")
        shown(" not\x1b[2J")
        yield "so"
        yield " it is"

    assert "".join(shown.before(answer())) == "so it is"
    text = terminal.getvalue()
    assert text.startswith("\x1b[2mwhy\x1b[0m")
    assert "\\x1b[2J" in text
    assert text.endswith("\n\n")


def test_a_model_without_channels_is_as_ever(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    with Engine(path, cache="50%", publish=False) as engine:
        prompt, stop, bos = engine.render(HI)
        assert prompt.form == AnswerForm(frozenset([258]))
        told: list[str] = []
        answer = "".join(engine.chat(HI, temperature=0, max_tokens=9, on_reasoning=told.append))
        again = "".join(
            engine.generate(str(prompt), special=True, bos=bos, temperature=0, max_tokens=9)
        )
        assert (answer, told, stop) == (again, [], [])
