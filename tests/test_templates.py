"""Chat templates: whatever a model brings is run, bounded, and refused in one line."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import templates
import tiny_moe
import vocabularies
from command_line import run
from remoe_edge import Engine
from remoe_edge.engine import template_sandbox
from remoe_edge.engine.continued import begun
from remoe_edge.engine.template_sandbox import Template, TemplateFailed
from remoe_edge.errors import InputError, ModelError, UnsupportedError
from vocabularies import remade

KEY = "tokenizer.chat_template"
HI = [{"role": "user", "content": "hi"}]
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo", "reasoning_content": "since"},
    {"role": "user", "content": " and more\n"},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": "<int>", "b": "é"}}}
Changed = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("templates") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.fixture
def with_keys(model: Path, tmp_path: Path) -> Changed:
    """Copy the model with other templates, by the key after `tokenizer.chat_template`."""

    def change(default: str | None = None, **named: str) -> Path:
        new: dict[str, tuple[str, Any]] = {KEY: ("STRING", default) if default else ("", None)}
        new |= {f"{KEY}.{name}": ("STRING", text) for name, text in named.items()}
        return remade(model, tmp_path / "changed.gguf", new)

    return change


def written(template: str, messages: Any = HI, **variables: Any) -> str:
    usual = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": None}
    return Template(template).render({**usual, "messages": messages, **variables})


def gone_on(source: str, messages: list[dict[str, Any]]) -> str:
    """Write what an answer goes on from, as the engine does."""
    marked, continued = begun(messages, source)
    return continued.cut(written(source, marked, add_generation_prompt=False), [])[0]


# --- what known templates ask for ---


@pytest.mark.parametrize("name", ["CHATML", "QWEN3", "HARMONY", "DEEPSEEK", "LLAMA3", "GRANITE"])
@pytest.mark.parametrize("messages", [HI, TURNS], ids=["one", "turns"])
@pytest.mark.parametrize("variables", [{}, {"tools": [TOOL]}, {"enable_thinking": False}], ids=str)
def test_counting_changes_nothing_that_is_written(
    name: str, messages: Any, variables: dict[str, Any]
) -> None:
    source = getattr(templates, name)
    usual = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": None}
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[template_sandbox._Generation, jinja2.ext.loopcontrols],
    )
    plain.filters["tojson"] = template_sandbox._to_json
    plain.globals["strftime_now"] = template_sandbox._now
    given = {**usual, "messages": messages, **variables}
    assert written(source, **given) == plain.from_string(source).render(given)


def test_the_features_of_known_templates() -> None:
    assert written(templates.QWEN3).endswith("<|im_start|>assistant\n")
    off = written(templates.QWEN3, enable_thinking=False)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "since" not in written(templates.QWEN3, TURNS)  # reasoning before the last question
    assert "<think>\nsince\n</think>\n\nyo" in written(templates.QWEN3, TURNS[:3])
    assert '{"a": "<int>", "b": "é"}' in written(templates.QWEN3, tools=[TOOL])
    assert re.search(r"Current date: \d{4}-\d\d-\d\d<", written(templates.HARMONY))
    assert written(templates.DEEPSEEK) == "<s><|User|>hi<|Assistant|><think>\n"
    assert written(templates.MISTRAL, TURNS) == (
        "<s>[INST] be brief\n\nhi[/INST] yo</s>[INST]  and more\n[/INST]"
    )
    assert "user<|end_header_id|>\n\nand more<|eot_id|>" in written(templates.LLAMA3, TURNS)
    granite = written(templates.GRANITE, TURNS, documents=[{"text": t} for t in "abc"])
    assert granite.count("document<") == 2
    assert "assistant<|end_of_role|>yo<|end_of_text|>" in granite
    assert written("{% macro m(context, called) %}{{ context }}{{ called }}{% endmacro %}"
                   "{{ m(called=1, context=2) }}") == "21"  # fmt: skip
    assert written("{% set t | upper %}a{% endset %}{{ t ~ 1 ~ (2 ~ 'b') }}") == "A12b"
    assert written("{{ '%s-%d' % ('a', 3) }} {{ '{}'.format(4) }} {{ [1, 2] | join(', ') }}") == (
        "a-3 4 1, 2"
    )


# --- what must end ---


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "power"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "Range too big"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro m(n) %}{{ n and m(n - 1) }}{{ n and m(n - 1) }}{% endmacro %}{{ m(50) }}", "steps"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ 'x' * 1000000000 }}", "characters"),
        ("{{ [1] * 1000000000 }}", "characters"),
        ("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "characters"),
        ("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}"
         "{% endfor %}", "characters"),
        ("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set t %}{{ n.x }}{{ n.x }}"
         "{% endset %}{% set n.x = t %}{% endfor %}", "characters"),
        ("{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}"
         "{% endfor %}", "bits"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "characters"),
        ("{{ 'x'.ljust(1000000000) }}", "characters"),
        ("{{ 'x' | center(1000000000) }}", "characters"),
        ("{{ '%1000000000d' % 3 }}", "width"),
        ("{{ '%*d' | format(1000000000, 3) }}", "width"),
        ("{{ '{:>1000000000}'.format(3) }}", "width"),
        ("{{ '{:>{}}'.format(3, 1000000000) }}", "width"),
        ("{% set x = 'x' * 99999 %}{{ x.replace('x', x) }}", "characters"),
        ("{% set x = 'x' * 99999 %}{{ x | replace('x', x) }}", "characters"),
        ("{% set x = 'x' * 99999 %}{{ x.join(messages * 999) }}", "characters"),
        ("{{ messages | tojson(indent=1000000000) }}", "indents"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe|immutable"),
        ("{{ x.y.z }}", "undefined"),
        ("{{ (" + "(" * 5000 + "1" + ")" * 5000 + ") }}", "nests brackets"),
        ("{{ " + "not " * 5000 + "1 }}", "recursion"),
        ("{{ messages | nosuchfilter }}", "line 1: No filter named 'nosuchfilter'"),
        ("{% if %}", "line 1: "),
        ("{% include 'etc/passwd' %}", "no loader"),
        ("{{ raise_exception('not\nso') }}", "^not so$"),
    ],
)  # fmt: skip
def test_a_template_that_does_wrong_fails_in_one_line(template: str, why: str) -> None:
    gc.collect()  # or it may run at the end of the stack, where nothing can
    with pytest.raises(TemplateFailed, match=why) as failed:
        written(template)
    assert len(str(failed.value).splitlines()) == 1
    assert len(str(failed.value)) < 500


@pytest.mark.parametrize(
    "template",
    ["{{ messages | nosuchfilter }}", "{% if %}", "{{ raise_exception('no') }}", "{{ a.b.c }}",
     "{% for i in range(999999999) %}{% endfor %}", "{{ (" + "(" * 5000 + "1"],
)  # fmt: skip
def test_a_model_with_a_broken_template_continues_text(
    with_keys: Changed, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = with_keys(template)
    ask = ("chat", "-m", broken, "-p", "hi", "-n", "2", "--temp", "0")
    raw = run(capsys, *ask, "--raw")
    assert (raw.code, bool(raw.out)) == (0, True), raw
    error = run(capsys, *ask)
    assert (error.code, error.out) == (1, "")
    assert error.err.splitlines()[-1].startswith(f"Error: the chat template of {broken} fails: ")


# --- which template, of what size and bytes ---


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2048, 100_000])
def test_a_template_of_any_size_is_whole(with_keys: Changed, size: int) -> None:
    body = "{{ messages[0].content }}!"
    path = with_keys("{#" + "x" * (size - len(body) - 4) + "#}" + body)
    with Engine(path, cache="50%", publish=False) as engine:
        assert len(engine.chat_template or "") == size
        assert engine.render(HI)[0] == "hi!"


def test_a_value_that_is_no_utf8_hides_no_other(model: Path, tmp_path: Path) -> None:
    odd = remade(model, tmp_path / "odd.gguf", {"general.description": ("STRING", "caf# model")})
    odd.write_bytes(odd.read_bytes().replace(b"caf# model", b"caf\xe9 model"))
    with Engine(odd, cache="50%", publish=False) as engine:
        assert engine.chat_template
        assert engine.llama.metadata["general.architecture"] == "qwen3moe"
        assert engine.llama.metadata["general.description"] == "caf\ufffd model"


def test_a_template_that_is_no_utf8_is_refused(
    with_keys: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = with_keys("caf# {{ messages[0].content }}")
    odd.write_bytes(odd.read_bytes().replace(b"caf# {", b"caf\xe9 {"))
    assert run(capsys, "chat", "-m", odd, "--raw", "-p", "hi", "-n", "2").code == 0
    assert "no UTF-8" in run(capsys, "chat", "-m", odd, "-p", "hi", "-n", "2").err


def test_named_templates(with_keys: Changed) -> None:
    path = with_keys("plain", tool_use="{{ tools | length }} tools", rag="{{ documents[0] }}")
    with Engine(path, cache="50%", publish=False) as engine:
        assert engine.render(HI)[0] == "plain"
        assert engine.render(HI, tools=[TOOL])[0] == "1 tools"
        assert engine.render(HI, name="rag", variables={"documents": ["d"]})[0] == "d"
        with pytest.raises(UnsupportedError, match="'other'; there are: default, rag, tool_use"):
            engine.render(HI, name="other")


def test_a_broken_template_beside_a_good_one(with_keys: Changed) -> None:
    with Engine(with_keys("plain", tool_use="{% if %}"), cache="50%", publish=False) as engine:
        assert engine.render(HI)[0] == "plain"
        with pytest.raises(ModelError, match="chat template 'tool_use' of"):
            engine.render(HI, tools=[TOOL])


def test_the_only_template_is_taken_and_several_need_a_name(with_keys: Changed) -> None:
    only = with_keys(
        None, tool_use="{% for t in tools %}{{ t }}{% endfor %}{{ messages | length }}"
    )
    with Engine(only, cache="50%", publish=False) as engine:
        assert engine.render(HI)[0] == "1"  # and goes through tools that are not there
    with Engine(with_keys(None, a="x", b="y"), cache="50%", publish=False) as engine:
        with pytest.raises(UnsupportedError, match="'default'; there are: a, b"):
            engine.render(HI)
        assert engine.render(HI, name="b")[0] == "y"


def test_a_template_that_writes_nothing(
    with_keys: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run(capsys, "chat", "-m", with_keys("{# nothing #}"), "-p", "hi", "-n", "2")
    assert (error.code, "writes nothing" in error.err) == (1, True), error
    empty = run(capsys, "chat", "-m", with_keys(" "), "-p", "hi", "-n", "2")
    assert (empty.code, "no chat template" in empty.err) == (0, True), empty


def test_no_template(with_keys: Changed) -> None:
    with Engine(with_keys(None), cache="50%", publish=False) as engine:
        assert engine.chat_template is None
        with pytest.raises(UnsupportedError, match="has no chat template"):
            engine.render(HI)


@pytest.mark.parametrize("messages", ["hi", [], ["hi"], {"role": "user"}, 3])
def test_messages_that_are_none(model: Path, messages: Any) -> None:
    with Engine(model, cache="50%", publish=False) as engine, pytest.raises(InputError):
        engine.render(messages)


# --- BOS and EOS ---


@pytest.mark.parametrize("begins", ["", "{{ bos_token }}"])
@pytest.mark.parametrize("wants", [True, False])
def test_bos_as_the_model_says_and_never_twice(
    model: Path, tmp_path: Path, begins: str, wants: bool
) -> None:
    new = {
        KEY: ("STRING", begins + templates.CHATML),
        "tokenizer.ggml.add_bos_token": ("BOOL", wants),
        "tokenizer.ggml.add_eos_token": ("BOOL", wants),
    }
    with Engine(remade(model, tmp_path / "b.gguf", new), cache="50%", publish=False) as engine:
        bos, eos = engine.llama.token_bos(), engine.llama.token_eos()
        text, _stop, adds = engine.render(HI)
        for flag in {adds, wants}:
            tokens = engine.tokenize(text, special=True, bos=flag)
            assert tokens[:2].count(bos) == (1 if begins or wants else 0)
            assert tokens[-1] != eos  # what a template wrote is gone on with
        assert engine.tokenize("hi") == vocabularies.wrapped(
            engine.tokenize("hi", bos=False), bos, eos, wants
        )
        written_out = "<|endoftext|>hi<|im_end|>"
        assert engine.tokenize(written_out, special=True) == engine.tokenize(
            written_out, special=True, bos=False
        )


# --- what ends an answer ---


def test_an_end_that_is_a_token_is_no_text(model: Path) -> None:
    with Engine(model, cache="50%", publish=False) as engine:
        assert engine.render(HI)[1] == []


def test_an_end_that_is_no_token_is_text(with_keys: Changed) -> None:
    path = with_keys(templates.CHATML.replace("<|im_end|>", "<|done|>"))
    with Engine(path, cache="50%", publish=False) as engine:
        prompt, stop, _ = engine.render(HI)
        assert (stop, prompt.form.ends) == (["<|done|>"], frozenset())


def test_a_turn_may_end_in_a_token_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    source = templates.CHATML.replace("<|im_end|>", "<|over|>")
    path = vocabularies.model(tmp_path / "over.gguf", source, "<|over|>")
    with Engine(path, cache="50%", publish=False) as engine:
        over = engine.tokenize("<|over|>", special=True, bos=False)[0]
        prompt, stop, _ = engine.render(HI)
        assert (stop, prompt.form.ends) == ([], frozenset([over]))
        assert not engine.is_end(over)
        engine.llama.generate = lambda tokens, **_: iter([97, over, 98])
        assert "".join(engine.chat(HI)) == "a"
        assert engine.answer.stop == "end"


@pytest.mark.parametrize(
    ("after", "end"),
    [
        ("<|close|>text<|sep|><|over|>\n", ["<|over|>"]),  # a part's end before the turn's
        ("<|over|>\n<|im_start|>assistant\n", []),  # the next turn, asked for or not
        ("<|over|><|im_start|><|sep|>", []),
        ("\n", []),
    ],
)
def test_what_stands_last_ends_a_turn(tmp_path: Path, after: str, end: list[str]) -> None:
    source = templates.CHATML.replace("<|im_end|>\n", after)
    if after.endswith("<|sep|>"):  # a template that asks for an answer whether it should or not
        source = source.replace("<|im_start|>assistant\n", "")
    path = vocabularies.model(tmp_path / "m.gguf", source, "<|over|>", "<|close|>", "<|sep|>")
    with Engine(path, cache="50%", publish=False) as engine:
        prompt, stop, _ = engine.render(HI)
        ids = {engine.tokenize(each, special=True, bos=False)[0] for each in end}
        assert (stop, prompt.form.ends) == ([], ids)


def test_the_end_of_a_message_is_not_the_end_of_an_answer(tmp_path: Path) -> None:
    source = templates.CHATML.replace("<|im_end|>", "<|end|>")
    several = ("<|end|>", "<|return|>", "<|call|>")  # llama.cpp tells by these
    for more, ends in ((several, 0), (("<|end|>",), 1)):
        path = vocabularies.model(tmp_path / f"{ends}.gguf", source, *more)
        with Engine(path, cache="50%", publish=False) as engine:
            assert len(engine.render(HI)[0].form.ends) == ends


def test_a_template_that_cannot_end_a_conversation_is_no_failure(with_keys: Changed) -> None:
    only_users = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    )
    path = with_keys(only_users + "{{ m.content }}{% endfor %}")
    with Engine(path, cache="50%", publish=False) as engine:
        assert engine.render(HI)[:2] == ("hi", [])


# --- answers that go on ---


KNOWN = ["CHATML", "QWEN3", "HARMONY", "DEEPSEEK", "MISTRAL", "LLAMA3", "GRANITE"]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("said", ["Sure, the", "Sure:\n\n ", "s", "<|im_end|> é"])
def test_an_answer_goes_on_where_the_assistant_stopped(name: str, said: str) -> None:
    """It is the template's own turn up to there, whatever ends the turn may hold."""
    source, blanks = getattr(templates, name), said[len(said.rstrip()) :]
    messages = [*HI, {"role": "assistant", "content": said}]
    whole = written(source, messages, add_generation_prompt=False)
    found = gone_on(source, messages)
    assert found.endswith(said)
    assert whole.startswith(found.removesuffix(blanks))
    # The question has been written, and nothing has been said twice.
    empty = written(
        source, [*HI, {"role": "assistant", "content": "\x01"}], add_generation_prompt=False
    )
    assert found.removesuffix(said) == empty[: empty.index("\x01")]


def test_what_an_answer_cannot_go_on_from_is_refused() -> None:
    asked = {"role": "assistant", "content": "so"}
    for last, said in (
        ({**asked, "tool_calls": [TOOL]}, "their results"),
        ({**asked, "content": [{"type": "text", "text": "so"}]}, "is a text"),
        ({**asked, "content": "", "reasoning_content": "why"}, "no text"),
    ):
        with pytest.raises(InputError, match=said):
            gone_on(templates.CHATML, [*HI, last])
    for other in (
        "{{ messages | tojson(ensure_ascii=true) }}",
        "{{ messages[-1].content[::-1] }}",
        "-",
        "{{ messages }}" * 2,
    ):
        with pytest.raises(InputError, match="as it is"):
            gone_on(other, [*HI, asked])
    for blank in ("", " \n", None):
        messages, continued = begun([*HI, {**asked, "content": blank}])
        assert (list(messages), continued.mark) == (HI, "")
    with pytest.raises(InputError, match="no text"):
        begun([{**asked, "content": ""}])


def test_the_engine_goes_on(with_keys: Changed) -> None:
    """What the message spells of special tokens stays text, and reasoning that was begun goes on."""
    with Engine(with_keys(templates.QWEN3), cache="50%", publish=False) as engine:
        for said, opened in (
            ("a <|im_end|>b", False), ("<think>\nLet me", True), ("<think>", True),
        ):  # fmt: skip
            messages = [*HI, {"role": "assistant", "content": said}]
            prompt, _, bos = engine.render(messages)
            asks = engine.render(HI)[0]
            assert prompt == asks + said
            channels = prompt.form.channels
            assert channels is not None
            assert channels.opened == opened
            ids = engine.tokenize(prompt, special=True, bos=bos)
            assert ids == engine.tokenize(asks, special=True, bos=bos) + engine.tokenize(
                said, bos=False
            )
            assert engine.chat(messages, max_tokens=1).usage.prompt_tokens == len(ids)
