"""Tool calls: each way of writing them is read in whatever pieces it comes; what is no call is text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import templates
import tiny_moe
from letters import recite
from remoe_edge.errors import UnsupportedError
from serving import GPT_OSS, HERMES, HI, LLAMA, MISTRAL, Live, live, with_template

from remoe_edge.serve.events import ParserEvent, Reasoning, Text, ToolArguments, ToolBegin, ToolEnd  # isort: skip
from remoe_edge.serve.tools.formats import of_template

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "sure": {"type": "boolean"}},
            "required": ["a", "sure"],
        },
    },
}
NOTHING = {"type": "function", "function": {"name": "wait"}}


def read(template: str, pieces: Any) -> tuple[str, str, list[tuple[str, str, bool]]]:
    """Parse pieces; give (text, reasoning, calls as (name, arguments, did it end?))."""
    parser = of_template(template).parser(lambda marker: marker)
    events: list[ParserEvent] = []
    for piece in pieces:
        events += parser.feed(piece)
    events += parser.end()
    calls: dict[int, list[Any]] = {}
    ids = [each.id for each in events if isinstance(each, ToolBegin)]
    assert len(set(ids)) == len(ids)
    for each in events:
        if isinstance(each, ToolBegin):
            assert each.index == len(calls)
            calls[each.index] = [each.name, "", False]
        elif isinstance(each, ToolArguments):
            assert not calls[each.index][2]
            calls[each.index][1] += each.text
        elif isinstance(each, ToolEnd):
            calls[each.index][2] = True
    text = "".join(each.text for each in events if isinstance(each, Text))
    reasoning = "".join(each.text for each in events if isinstance(each, Reasoning))
    return text, reasoning, [tuple(each) for each in calls.values()]


NAMED = MISTRAL.replace("[TOOL_CALLS]", "[TOOL_CALLS][ARGS]")
TRICKY = '{"q": "a \\"}</tool_call>{[", "n": [1, {"x": {}}]}'
CALL = '{"name": "f", "arguments": ' + TRICKY + "}"
CASES: dict[str, tuple[str, str, str, str, list[tuple[str, str, bool]]]] = {
    "hermes": (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", "", [("f", TRICKY, True)]),
    "hermes after text": (
        HERMES, f"Let me see.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>"
        '{"name":"g","arguments":{}}</tool_call>', "Let me see.", "",
        [("f", TRICKY, True), ("g", "{}", True)],
    ),
    "hermes, arguments first": (
        HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", "",
        [("f", '{"a": 1}', True)],
    ),
    "hermes, arguments as text": (
        HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", "",
        [("f", '{"a": 1}', True)],
    ),
    "hermes, none": (
        HERMES, '<tool_call>{"name": "f"}</tool_call>', "", "", [("f", "{}", True)],
    ),
    "hermes, cut short": (
        HERMES, '<tool_call>{"name": "f", "arguments": {"a": ', "", "", [("f", '{"a": ', False)],
    ),
    "hermes, no call": (
        HERMES, "<tool_call>nonsense</tool_call> and", "<tool_call>nonsense</tool_call> and", "", [],
    ),
    "hermes, no name": (
        HERMES, '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', "", [],
    ),
    "hermes, half a marker": (HERMES, "a < b, <tool", "a < b, <tool", "", []),
    "mistral": (
        MISTRAL, f'Yes.[TOOL_CALLS] [{CALL}, {{"name": "g", "arguments": {{}}}}]', "Yes.", "",
        [("f", TRICKY, True), ("g", "{}", True)],
    ),
    "mistral, no call": (MISTRAL, "[TOOL_CALLS][3]", "3]", "", []),
    "mistral, text": (MISTRAL, "just text [TOOL", "just text [TOOL", "", []),
    "mistral by name": (
        NAMED, f"[TOOL_CALLS]f[ARGS]{TRICKY}[TOOL_CALLS]g[ARGS]{{}}", "", "",
        [("f", TRICKY, True), ("g", "{}", True)],
    ),
    "mistral by name, with an id": (
        NAMED, '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 1}', "", "", [("f", '{"a": 1}', True)],
    ),
    "llama": (
        LLAMA, '{"name": "f", "parameters": {"a": "1"}}', "", "", [("f", '{"a": "1"}', True)],
    ),
    "llama, two": (
        LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "",
        "", [("f", "{}", True), ("g", "{}", True)],
    ),
    "llama, json that is no call": (LLAMA, '{"city": "Oslo"}', '{"city": "Oslo"}', "", []),
    "llama, text": (LLAMA, "Hello {name}", "Hello {name}", "", []),
    "harmony": (
        GPT_OSS, "<|channel|>analysis<|message|>Hm, a tool.<|end|><|start|>assistant<|channel|>"
        f"commentary to=functions.f <|constrain|>json<|message|>{TRICKY}<|call|>", "", "Hm, a tool.",
        [("f", TRICKY, True)],
    ),
    "harmony, recipient first": (
        GPT_OSS, "<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>", "",
        "", [("f", "{}", True)],
    ),
    "harmony, an answer": (
        GPT_OSS, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Yes, it is.", "Yes, it is.", "Hm.", [],
    ),
    "harmony, a preamble": (
        GPT_OSS, "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant<|channel|>"
        "commentary to=functions.f<|message|>{}", "I will look.", "", [("f", "{}", True)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_calls_are_read_in_whatever_pieces(name: str) -> None:
    template, written, text, reasoning, calls = CASES[name]
    for n in (1, 2, 3, 7, len(written)):
        pieces = [written[i : i + n] for i in range(0, len(written), n)]
        found = read(template, pieces)
        assert (found[0].strip(), found[1], found[2]) == (text, reasoning, calls), n


@pytest.mark.parametrize(
    ("template", "name"),
    [(HERMES, "Hermes"), (MISTRAL, "Mistral"), (NAMED, "Mistral, by name"), (LLAMA, "Llama 3"),
     (GPT_OSS, "harmony")],
)  # fmt: skip
def test_a_template_says_how_tools_are_called(template: str, name: str) -> None:
    assert of_template(template).name == name


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (templates.CHATML, "no place"),
        (HERMES + "<function=", "Qwen3-Coder"),
        (HERMES + "<arg_key>", "GLM"),
        (templates.DEEPSEEK + "<\uff5ctool\u2581calls\u2581begin\uff5c>{{ tools }}", "DeepSeek"),
        (templates.GRANITE + "<|tool_call|>{{ tools }}", "Granite"),
        (HERMES + "<|tool_call_start|>", "LFM2"),
        (templates.CHATML + "{{ tools }}", "not known"),
    ],
)
def test_other_ways_are_refused_by_name(template: str, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        of_template(template)


# --- against a live server ---


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tools") / "m.gguf"
    return recite(tiny_moe.make(made, "qwen3moe", "Q8_0"))


@pytest.fixture(scope="module", params=["hermes", "mistral", "named", "llama", "harmony"])
def server(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Live]:
    template = {
        "hermes": HERMES, "mistral": MISTRAL, "named": NAMED, "llama": LLAMA, "harmony": GPT_OSS,
    }[request.param]  # fmt: skip
    path = with_template(tiny, tiny.with_name(f"{request.param}.gguf"), template)
    with live(path, n_ctx=1024) as started:
        # A random model thinks without end, unless it often writes what begins the end of that.
        ends = {"hermes": "</", "harmony": "<|"}.get(request.param, "")
        tokens = [started.post("/tokenize", content=each)["tokens"][0] for each in ends]
        # Nor may it write blanks between the parts of a call, where its grammar lets it write many.
        blanks = [started.post("/tokenize", content=each)["tokens"][0] for each in " \n\t"]
        started.liked = dict.fromkeys(tokens, 30) | dict.fromkeys(blanks, -100)  # type: ignore[attr-defined]
        yield started


def settings(server: Live) -> dict[str, Any]:
    return {"temperature": 1, "seed": 2, "max_tokens": 300, "logit_bias": server.liked}  # type: ignore[attr-defined]


def is_a_call(name: str, arguments: str) -> bool:
    found = json.loads(arguments)
    if name == "wait":
        return isinstance(found, dict)
    return name == "add" and found["a"] in (1, 2) and isinstance(found["sure"], bool)


def test_a_call_that_is_required_is_made(server: Live) -> None:
    named = {"type": "function", "function": {"name": "add"}}
    for choice in ("required", named):
        asked = {"messages": HI, "tools": [ADD], "tool_choice": choice, **settings(server)}
        made = server.post("/v1/chat/completions", parallel_tool_calls=False, **asked)["choices"][0]
        (call,) = made["message"]["tool_calls"]
        assert made["finish_reason"] == "tool_calls"
        assert (call["type"], len(call["id"])) == ("function", 9)
        assert is_a_call(call["function"]["name"], call["function"]["arguments"])
        assert made["message"]["content"] is None
        chunks = server.stream("/v1/chat/completions", parallel_tool_calls=False, **asked)
        deltas = [data["choices"][0]["delta"] for _, data in chunks[:-1]]
        calls = [each["tool_calls"][0] for each in deltas if "tool_calls" in each]
        assert calls[0]["function"]["name"] == "add"
        text = "".join(each["function"]["arguments"] for each in calls)
        assert text == call["function"]["arguments"]
        assert chunks[-2][1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_and_their_results_go_back(server: Live) -> None:
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1}'},
    }
    messages = [
        *HI,
        {"role": "assistant", "content": "calling", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "2"},
        {"role": "user", "content": "so?"},
    ]
    made = server.post("/v1/chat/completions", messages=messages, max_tokens=3, tools=[ADD])
    assert made["usage"]["completion_tokens"] <= 3


def test_other_protocols_call_as_well(server: Live) -> None:
    function = ADD["function"]
    flat = {"type": "function", **function}
    settled = settings(server)
    n = settled.pop("max_tokens")
    made = server.post(
        "/v1/responses", input="hi", tools=[flat], max_output_tokens=n, **settled,
        tool_choice={"type": "function", "name": "add"},
    )  # fmt: skip
    (item,) = [each for each in made["output"] if each["type"] == "function_call"]
    assert is_a_call(item["name"], item["arguments"])
    found = server.stream(
        "/v1/responses", input="hi", tools=[flat], max_output_tokens=n, **settled,
        tool_choice={"type": "function", "name": "add"},
    )  # fmt: skip
    deltas = [d["delta"] for name, d in found if name == "response.function_call_arguments.delta"]
    assert "".join(deltas) == item["arguments"]


def test_what_cannot_be_called_is_refused(server: Live) -> None:
    def refused(**body: Any) -> str:
        status, error = server.refused("/v1/chat/completions", messages=HI, max_tokens=3, **body)
        assert status == 400
        return str(error["message"])

    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    assert "strict" in refused(tools=[strict])
    assert "two tools" in refused(tools=[ADD, ADD])
    assert "no tools" in refused(tool_choice="required")
    assert "no tool other" in refused(
        tools=[ADD], tool_choice={"type": "function", "function": {"name": "other"}}
    )
    assert "one of them" in refused(tools=[ADD], response_format={"type": "json_object"})
    assert "functions alone" in refused(tools=[{"type": "web_search"}])
    assert "tool_choice" in refused(tools=[ADD], tool_choice="sometimes")


def test_tools_are_not_given_where_none_may_be_called(server: Live) -> None:
    plain = server.post("/v1/chat/completions", messages=HI, temperature=0, max_tokens=5)
    none = server.post(
        "/v1/chat/completions", messages=HI, temperature=0, max_tokens=5, tools=[ADD, NOTHING],
        tool_choice="none",
    )  # fmt: skip
    assert none["choices"] == plain["choices"]
    assert none["usage"] == plain["usage"]
