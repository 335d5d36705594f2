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
from serving import GPT_OSS, HERMES, HI, LLAMA, MISTRAL, PLAIN_HERMES, Live, live, with_template

from remoe_edge.serve import asks  # isort: skip
from remoe_edge.serve.events import ParserEvent, Reasoning, Text, ToolArguments, ToolBegin, ToolEnd  # isort: skip
from remoe_edge.serve.tools.format import Tool  # isort: skip
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
    parser = of_template(template).parser(lambda marker: marker, TOOLS)
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


QWEN_TAGGED = HERMES + "{# <function=NAME>\n<parameter=KEY> #}"
GLM = HERMES + "{# <arg_key> #}"
V3 = templates.DEEPSEEK + "{{ tools }}{# <\uff5ctool\u2581call\u2581begin\uff5c>```json #}"
V31 = V3.replace("```json", "")
GRANITE = templates.GRANITE + "{{ tools }}{# <|tool_call|> #}"
LFM2 = templates.CHATML + "{% if tools %}<|tool_list_start|>{{ tools }}<|tool_list_end|>{% endif %}"


def deepseek(text: str) -> str:
    """Write DeepSeek's markers for short ones."""
    for short, words in (
        ("<<", "calls begin"), (">>", "calls end"), ("(", "call begin"), (")", "call end"), ("/", "sep"),
    ):  # fmt: skip
        text = text.replace(short, f"<\uff5ctool\u2581{words}\uff5c>".replace(" ", "\u2581"))
    return text


TOOLS = [
    Tool("f", None, {
        "type": "object", "$defs": {"word": {"enum": ["a", "b"]}},
        "properties": {
            "s": {"type": "string"}, "n": {"type": "integer"}, "b": {"type": "boolean"},
            "list": {"type": "array"}, "word": {"$ref": "#/$defs/word"},
            "maybe": {"type": ["string", "null"]},
        },
    }),
    Tool("g", None, {}),
]  # fmt: skip
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
    "qwen, tagged": (
        QWEN_TAGGED, "I look.\n\n<tool_call>\n<function=f>\n"
        '<parameter=s>\nline "1"\n\nline </b> 3\n</parameter>'
        "\n<parameter=n>\n12\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n<parameter=list>\n[1,"
        ' {"x": "</parameter"}]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n'
        "</function>\n</tool_call>", "I look.", "",
        [("f", '{"s": "line \\"1\\"\\n\\nline </b> 3", "n": 12, "b": true, "list": [1, {"x": '
          '"</parameter"}]}', True), ("g", "{}", True)],
    ),
    "qwen, tagged, the marker left out": (
        QWEN_TAGGED, "Hm.\n<function=f>\n<parameter=s>\n42\n</parameter>\n</function>\n</tool_call>",
        "Hm.", "", [("f", '{"s": "42"}', True)],
    ),
    "qwen, tagged, types": (
        QWEN_TAGGED, "<tool_call>\n<function=f>\n<parameter=word>\na\n</parameter>\n"
        "<parameter=maybe>\nnull\n</parameter>\n<parameter=other>\n007\n</parameter>\n<parameter=s>\n\n</parameter>\n</function>\n"
        "</tool_call>", "", "", [("f", '{"word": "a", "maybe": null, "other": "007", "s": ""}', True)],
    ),
    "qwen, tagged, an unknown tool": (
        QWEN_TAGGED, "<tool_call><function=h><parameter=x>1</parameter><parameter=y>z</parameter>"
        "</function></tool_call>", "", "", [("h", '{"x": 1, "y": "z"}', True)],
    ),
    "qwen, tagged, cut short": (
        QWEN_TAGGED, "<tool_call>\n<function=f>\n<parameter=s>\nlin", "", "",
        [("f", '{"s": "lin', False)],
    ),
    "qwen, tagged, no call": (
        QWEN_TAGGED, "<tool_call>nonsense</tool_call> and", "<tool_call>nonsense</tool_call> and", "", [],
    ),
    "glm": (
        GLM, "Look.\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>a <b> \"c\"\n</arg_value>\n<arg_key>n"
        "</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>", "Look.", "",
        [("f", '{"s": "a <b> \\"c\\"\\n", "n": 3}', True), ("g", "{}", True)],
    ),
    "glm, on one line": (
        GLM, "<tool_call>f<arg_key>b</arg_key><arg_value>false</arg_value></tool_call>", "", "",
        [("f", '{"b": false}', True)],
    ),
    "glm, no call": (GLM, "<tool_call>{x}</tool_call>!", "<tool_call>{x}</tool_call>!", "", []),
    "deepseek v3": (
        V3, "Yes." + deepseek("<<(function/f\n```json\n") + TRICKY
        + deepseek("\n```)\n(function/g\n```json\n{}\n```)>>"), "Yes.", "",
        [("f", TRICKY, True), ("g", "{}", True)],
    ),
    "deepseek v3.1": (
        V31, "Yes." + deepseek("<<(f/") + TRICKY + deepseek(")(g/{})>>"), "Yes.", "",
        [("f", TRICKY, True), ("g", "{}", True)],
    ),
    "deepseek, the marker left out": (
        V31, deepseek('(f/{"a": 1})>>'), "", "", [("f", '{"a": 1}', True)],
    ),
    "deepseek, cut short": (V31, deepseek('<<(f/{"a": 1'), "", "", [("f", '{"a": 1', False)]),
    "deepseek, no call": (V31, deepseek("<< so"), deepseek("<< so"), "", []),
    "granite": (
        GRANITE, f'Yes.<|tool_call|>[{CALL}, {{"name": "g", "arguments": {{}}}}]', "Yes.", "",
        [("f", TRICKY, True), ("g", "{}", True)],
    ),
    "granite, without bars": (GRANITE, f"<tool_call> [{CALL}]", "", "", [("f", TRICKY, True)]),
    "granite, no call": (GRANITE, "<|tool_call|>[3] so", "<|tool_call|>[3] so", "", []),
    "lfm2": (
        LFM2, "Look.<|tool_call_start|>[f(s=\"a'\\n(\", n=-1.5, b=True, "
        "list=[1, {'x': None}, (2, 3)]), g()]<|tool_call_end|>done", "Look.done", "",
        [("f", '{"s": "a\'\\n(", "n": -1.5, "b": true, "list": [1, {"x": null}, [2, 3]]}', True),
         ("g", "{}", True)],
    ),
    "lfm2, quotes": (
        LFM2, "<|tool_call_start|>[f("
        "s='it\\'s \"so\" \\u00e9\\x41', word=free)]<|tool_call_end|>", "", "",
        [("f", '{"s": "it\'s \\"so\\" \u00e9A", "word": "free"}', True)],
    ),
    "lfm2, cut short": (
        LFM2, '<|tool_call_start|>[f(s="a', "", "", [("f", '{"s": "a', False)],
    ),
    "lfm2, no call": (
        LFM2, "<|tool_call_start|>hm<|tool_call_end|>", "<|tool_call_start|>hm<|tool_call_end|>", "", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_calls_are_read_in_whatever_pieces(name: str) -> None:
    template, written, text, reasoning, calls = CASES[name]
    splits = [[written[i : i + n] for i in range(0, len(written), n)] for n in (1, 2, 3, 7)]
    splits += [[written[:at], written[at:]] for at in range(len(written) + 1)]
    for pieces in splits:
        found = read(template, pieces)
        assert (found[0].strip(), found[1], found[2]) == (text, reasoning, calls), pieces
    for _, arguments, is_whole in calls:
        assert not is_whole or isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(
    ("template", "name"),
    [(HERMES, "Hermes"), (MISTRAL, "Mistral"), (NAMED, "Mistral, by name"), (LLAMA, "Llama 3"),
     (GPT_OSS, "harmony"), (QWEN_TAGGED, "Qwen3-Coder"), (GLM, "GLM-4.5"),
     (V3, "DeepSeek V3 and R1"), (V31, "DeepSeek V3.1"), (GRANITE, "Granite"), (LFM2, "LFM2"),
     (PLAIN_HERMES, "Hermes")],
)  # fmt: skip
def test_a_template_says_how_tools_are_called(template: str, name: str) -> None:
    assert of_template(template).name == name


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (templates.CHATML, "no place"),
        (HERMES + "<minimax:tool_call>", "MiniMax"),
        (templates.CHATML + "{{ tools }}<|START_ACTION|>", "Command"),
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


# Calls of earlier turns, as most templates have them, and as those do that want their arguments' text.
BACK = "{% for m in messages if m.tool_calls %}{{ m.tool_calls | tojson }}{% endfor %}"
TEXT_BACK = BACK.replace("m.tool_calls | tojson", "'```' + m.tool_calls[0].function.arguments")
SERVED = {
    "hermes": BACK + HERMES, "mistral": BACK + MISTRAL, "named": BACK + NAMED, "llama": BACK + LLAMA,
    "harmony": BACK + GPT_OSS, "tagged": BACK + QWEN_TAGGED, "glm": BACK + GLM, "v3": TEXT_BACK + V3,
    "v31": TEXT_BACK + V31, "granite": BACK + GRANITE, "lfm2": LFM2,
}  # fmt: skip


@pytest.fixture(scope="module", params=SERVED)
def server(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Live]:
    path = with_template(tiny, tiny.with_name(f"{request.param}.gguf"), SERVED[request.param])
    with live(path, n_ctx=1024) as started:
        # A random model thinks without end, unless it often writes what begins the end of that.
        ends = "<|" if request.param == "harmony" else "</"
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
    asked = {"max_tokens": 3, "tools": [ADD]}
    made = server.post("/v1/chat/completions", messages=messages, **asked)
    del messages[1]["tool_calls"]
    without = server.post("/v1/chat/completions", messages=messages, **asked)
    assert made["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 5


def test_calls_of_earlier_turns_are_not_lost_in_silence() -> None:
    function = {"name": "f", "arguments": {"a": 1, "b": "x'", "c": True, "d": [None]}}
    called = {"role": "assistant", "content": "so", "tool_calls": [{"function": function}]}
    with pytest.raises(UnsupportedError, match="earlier turns"):
        asks._for(HERMES, [called])
    (written,) = asks._for(LFM2, [called])
    text = '<|tool_call_start|>[f(a=1, b="x\'", c=True, d=[None])]<|tool_call_end|>'
    assert written == {"role": "assistant", "content": f"so{text}"}
    assert read(LFM2, [text])[2] == [("f", '{"a": 1, "b": "x\'", "c": true, "d": [null]}', True)]


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
