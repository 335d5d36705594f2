"""OpenAI's protocols against a live server: what comes whole is what comes in a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from remoe_edge import Engine
from serving import HI, Live, chatting, live

from remoe_edge.serve.events import Text, TokenChoice, TokenText  # isort: skip
from remoe_edge.serve.protocols.openai_completions import (  # isort: skip
    CompletionReply,
    CompletionRequest,
)

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Live]:
    with live(model, n_ctx=1024) as started:
        yield started


def test_a_chat_is_answered_as_the_engine_answers_it(server: Live, model: Path) -> None:
    found = server.post(CHAT, model="whatever", messages=HI, **GREEDY)
    with Engine(model, cache="50%", n_ctx=1024, threads=1) as engine:
        alone = engine.chat(HI, **GREEDY)
        text = alone.read()
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == alone.finish_reason
    assert found["object"] == "chat.completion"
    assert found["usage"] == {
        "prompt_tokens": alone.usage.prompt_tokens,
        "completion_tokens": alone.usage.completion_tokens,
        "total_tokens": alone.usage.total_tokens,
    }
    assert found["remoe_edge"]["hit_rate"] is not None


def test_a_stream_gives_what_the_whole_gives(server: Live) -> None:
    asked = {"messages": HI, "logprobs": True, "top_logprobs": 3, **GREEDY}
    whole = server.post(CHAT, **asked)
    chunks = server.stream(CHAT, stream_options={"include_usage": True}, **asked)
    assert chunks[-1] == (None, "[DONE]")
    assert {name for name, _ in chunks} == {None}
    parts = [data for _, data in chunks[:-1]]
    assert {part["id"] for part in parts} == {parts[0]["id"]}
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    choices = [part["choices"][0] for part in parts[:-1]]
    (wanted,) = whole["choices"]
    text = "".join(each["delta"].get("content", "") for each in choices)
    assert text == wanted["message"]["content"]
    assert [each["finish_reason"] for each in choices if each["finish_reason"]] == [
        wanted["finish_reason"]
    ]
    tokens = [t for each in choices if each["logprobs"] for t in each["logprobs"]["content"]]
    assert [t["token"] for t in tokens] == [t["token"] for t in wanted["logprobs"]["content"]]
    assert len(tokens) == whole["usage"]["completion_tokens"]
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # greedy
        assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    without = server.stream(CHAT, messages=HI, **GREEDY)
    assert not any("usage" in data for _, data in without[:-1])


def test_several_answers_have_seeds_of_their_own(server: Live) -> None:
    asked = {"messages": HI, "n": 3, "seed": 5, "temperature": 2.0, "max_tokens": 8}
    first, again = server.post(CHAT, **asked), server.post(CHAT, **asked)
    texts = [each["message"]["content"] for each in first["choices"]]
    assert [each["index"] for each in first["choices"]] == [0, 1, 2]
    assert texts == [each["message"]["content"] for each in again["choices"]]
    assert len(set(texts)) == 3
    second = server.post(CHAT, **{**asked, "n": 1, "seed": 6})
    assert second["choices"][0]["message"]["content"] == texts[1]
    n_out = first["usage"]["completion_tokens"]
    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    assert n_out > second["usage"]["completion_tokens"]
    streamed = server.stream(CHAT, **asked)
    by_index = dict.fromkeys(range(3), "")
    for _, data in streamed[:-1]:
        for choice in data["choices"]:
            by_index[choice["index"]] += choice["delta"].get("content", "")
    assert list(by_index.values()) == texts


def test_settings_reach_the_sampler(server: Live) -> None:
    usual = server.post(TEXT, prompt="ab", logprobs=1, **GREEDY)["choices"][0]
    first = usual["logprobs"]["tokens"][0]
    token = server.post("/tokenize", content=first)["tokens"]
    assert len(token) == 1
    for name in ("max_tokens", "max_completion_tokens"):
        short = server.post(CHAT, messages=HI, temperature=0, **{name: 3})
        assert short["usage"]["completion_tokens"] == 3
        assert short["choices"][0]["finish_reason"] == "length"
    banned = server.post(TEXT, prompt="ab", logit_bias={token[0]: -100}, logprobs=0, **GREEDY)
    assert first not in banned["choices"][0]["logprobs"]["tokens"]
    forced = server.post(TEXT, prompt="ab", logit_bias={str(token[0]): 100}, **GREEDY)
    assert forced["choices"][0]["text"] == first * 12
    apart = server.post(
        TEXT, prompt="ab", logit_bias={token[0]: 100}, frequency_penalty=2, presence_penalty=2,
        repeat_penalty=1.5, **GREEDY,
    )  # fmt: skip
    assert apart["choices"][0]["text"]
    mark = usual["text"][2:4]
    stopped = server.post(TEXT, prompt="ab", stop=[mark, "never"], **GREEDY)["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (usual["text"].partition(mark)[0], "stop")
    assert server.stream(TEXT, prompt="ab", stop=mark, **GREEDY)[-1][1] == "[DONE]"


def test_completions_continue_texts_and_tokens(server: Live) -> None:
    usual = server.post(TEXT, prompt="abc", **GREEDY)
    tokens = server.post("/tokenize", content="abc", add_special=True)["tokens"]
    assert server.post(TEXT, prompt=tokens, **GREEDY)["choices"] == usual["choices"]
    several = server.post(TEXT, prompt=["abc", "x"], n=2, seed=1, **GREEDY)
    assert [each["index"] for each in several["choices"]] == [0, 1, 2, 3]
    assert several["choices"][0]["text"] == usual["choices"][0]["text"]
    assert several["choices"][2]["text"] == several["choices"][3]["text"]
    echoed = server.post(TEXT, prompt="abc", echo=True, **GREEDY)
    assert echoed["choices"][0]["text"] == "abc" + usual["choices"][0]["text"]
    streamed = server.stream(TEXT, prompt="abc", echo=True, **GREEDY)
    parts = [choice["text"] for _, data in streamed[:-1] for choice in data["choices"]]
    assert "".join(parts) == echoed["choices"][0]["text"]
    assert server.post(TEXT, prompt="abc")["usage"]["completion_tokens"] <= 16
    nothing = server.post(TEXT, prompt="abc", max_tokens=0, echo=True)["choices"][0]
    assert (nothing["text"], nothing["finish_reason"]) == ("abc", "length")
    log = server.post(TEXT, prompt="abc", logprobs=2, **GREEDY)["choices"][0]["logprobs"]
    assert "".join(log["tokens"])[: len(usual["choices"][0]["text"])] == usual["choices"][0]["text"]
    assert log["text_offset"][0] == 0
    assert all(1 <= len(each) <= 2 for each in log["top_logprobs"])


def test_offsets_are_of_whole_characters() -> None:
    """Tokens with a part of a character each; and two parts that look alike among the likeliest."""
    asked = CompletionRequest(["é"], {"logprobs": 2}, 1, True, False, False)
    top = (TokenText(b"\xe6", -1.0), TokenText(b"\xe7", -2.0))
    tokens = [
        TokenChoice(data, -1.0, top) for data in (b"x", b"\xe6\x97", b"\xa5", b"y", b"\xff", b"z")
    ]
    expected = [1, 2, 2, 3, 4, 5]
    reply = CompletionReply(asked, "tiny", ["é"])
    streamed = []
    for part in (tokens[:2], tokens[2:]):
        ((_, chunk),) = reply.take(0, Text("", tuple(part)))
        assert isinstance(chunk, dict)
        streamed += chunk["choices"][0]["logprobs"]["text_offset"]
    log = reply.whole()["choices"][0]["logprobs"]
    assert log["text_offset"] == streamed == expected
    assert log["top_logprobs"][0] == {"\ufffd": -1.0}


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]}, "sure": {"type": "boolean"},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a_b"}]},
    },
    "required": ["city", "sure", "next"],
    "$defs": {"a_b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}  # fmt: skip


def test_an_answer_is_held_to_a_schema(server: Live) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": SCHEMA}}
    # No reasoning, which might have no end, and few blanks, which the grammar lets be many.
    unthinking = {server.post("/tokenize", content=each)["tokens"][0]: -100 for each in "< \n\t"}
    for seed in range(4):
        made = server.post(
            CHAT, messages=HI, temperature=1.5, seed=seed, max_tokens=200, response_format=form,
            logit_bias=unthinking,
        )  # fmt: skip
        found = json.loads(made["choices"][0]["message"]["content"])
        assert set(found) == {"city", "sure", "next"}
        assert found["city"] in ("Oslo", "Rome")
        assert found["sure"] in (True, False)
        assert found["next"] is None or len(found["next"]) <= 2
    text = {"format": {"type": "json_schema", "name": "c", "schema": SCHEMA}}
    made = server.post(
        RESPONSES,
        input="hi",
        temperature=0,
        max_output_tokens=200,
        text=text,
        logit_bias=unthinking,
    )
    (item,) = [each for each in made["output"] if each["type"] == "message"]
    assert json.loads(item["content"][0]["text"])["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize(
    "wanted", ['a\x01\u00e9\U0001f600\\"\n]', {'x"y\n]': [True, None, 1.5]}, "x" * 200, [[]], False]
)
def test_any_value_can_be_asked_for(
    server: Live, capfd: pytest.CaptureFixture[str], wanted: Any
) -> None:
    """llama.cpp would print a grammar that it cannot read, and with it what was asked."""
    less = server.post("/tokenize", content="<")["tokens"][0]
    for schema in (
        {"const": wanted}, {"enum": [wanted]},
        {"$ref": "#/$defs/a b", "$defs": {"a b": {"anyOf": [{"const": wanted}, {"$ref": "#/$defs/c_d"}]},
                                          "c_d": {"const": wanted}}},
    ):  # fmt: skip
        form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
        made = server.post(
            CHAT, messages=HI, temperature=0, max_tokens=300, response_format=form,
            logit_bias={less: -100},
        )  # fmt: skip
        assert json.loads(made["choices"][0]["message"]["content"]) == wanted
    named = {"type": "object", "properties": {'a "b"\n': {"const": 1}}, "required": ['a "b"\n']}
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": named}}
    made = server.post(
        CHAT,
        messages=HI,
        temperature=0,
        max_tokens=99,
        response_format=form,
        logit_bias={less: -100},
    )
    assert json.loads(made["choices"][0]["message"]["content"]) == {'a "b"\n': 1}
    assert capfd.readouterr().err == ""


def test_a_ban_does_not_stand_against_a_schema(server: Live) -> None:
    """Where the schema allows banned tokens alone, llama.cpp would end the process."""
    banned = dict.fromkeys(range(tiny_moe.N_VOCAB), -100)
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"const": "abc"}}}
    for temperature in (0, 1):
        # Seeded: with a temperature, some answers think beyond their bound first.
        made = server.post(
            CHAT, messages=HI, temperature=temperature, seed=2, max_tokens=300, response_format=form,
            logit_bias=banned,
        )  # fmt: skip
        assert made["choices"][0]["message"]["content"] == '"abc"'


def test_any_json_is_an_object(server: Live) -> None:
    made = server.post(
        CHAT, messages=HI, temperature=0, max_tokens=40, response_format={"type": "json_object"},
        logit_bias={server.post("/tokenize", content="<")["tokens"][0]: -100},
    )  # fmt: skip
    assert made["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"type": "thing"}, "thing"),
        ({"$ref": "https://example.org/x"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "no grammar"),
        ({"type": "object", "required": ["a"]}, "required"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 10**9}, "maxItems"),
        ({"type": "string", "format": "email"}, "email"),
        ({"properties": {"a": {"not": {}}}}, "not"),
        ({"type": []}, "type is empty"),
        ({"enum": []}, "enum"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "itself"),
        ({"properties": {f"k{i}": {} for i in range(500)}}, "more than"),
        ({"type": "string", "pattern": "^("}, "no grammar"),
        ({"type": "string", "pattern": "^a{1_000_000_000}$"}, "repeats"),
        ({"type": "string", "pattern": "^([}] a{3,10000000000})$"}, "repeats"),
        ({"type": "string", "pattern": "^a{3,1}$"}, "repeats"),
        ({"type": "string", "pattern": "^" + "a" * 5000 + "$"}, "characters"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems"),
        ("text", "object"),
    ],
)
def test_what_no_grammar_can_say_is_refused_by_name(server: Live, schema: Any, said: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    status, error = server.refused(CHAT, messages=HI, response_format=form)
    assert status == 400
    assert said in error["message"]


def test_responses_come_as_items(server: Live) -> None:
    asked = {"input": "hi", "temperature": 0, "max_output_tokens": 12}
    chat = server.post(CHAT, messages=HI, **GREEDY)
    whole = server.post(RESPONSES, instructions="", **asked)
    (item,) = whole["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert whole["status"] == ("incomplete" if whole["incomplete_details"] else "completed")
    assert whole["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    found = server.stream(RESPONSES, **asked)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert all(name == data["type"] for name, data in found)
    kinds = [name for name, _ in found]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        f"response.{whole['status']}",
    ]  # fmt: skip
    deltas = [data["delta"] for name, data in found if name == "response.output_text.delta"]
    assert "".join(deltas) == item["content"][0]["text"]
    last = found[-1][1]["response"]
    assert last["output"][0]["content"] == item["content"]
    again = server.post(
        RESPONSES, temperature=0, max_output_tokens=12,
        input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    )  # fmt: skip
    assert again["output"][0]["content"] == item["content"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
        (TEXT, {"prompt": "a", "best_of": 2}, "best_of"),
        (TEXT, {"prompt": "a", "echo": True, "logprobs": 1}, "logprobs"),
        (TEXT, {"prompt": [1, 10**6]}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias"),
        (TEXT, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        (TEXT, {}, "prompt"),
        (CHAT, {"messages": HI, "mirostat": 2}, "mirostat"),
        (CHAT, {"messages": HI, "typical_p": 0.5}, "typical_p"),
        (CHAT, {"messages": HI, "unheard_of": 1}, "unheard_of"),
        (CHAT, {"messages": HI, "store": True}, "store"),
        (CHAT, {"messages": HI, "functions": []}, "functions"),
        (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": HI, "max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        (CHAT, {"messages": HI, "temperature": -1}, "temperature"),
        (CHAT, {"messages": HI, "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": HI, "temperature": True}, "temperature"),
        (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": HI, "n": 0}, "n"),
        (CHAT, {"messages": HI, "n": 10**6}, "n"),
        (CHAT, {"messages": HI, "stop": [""]}, "stop"),
        (CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"messages": HI, "reasoning_effort": "high"}, "reasoning_effort"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
        (RESPONSES, {"input": "hi", "previous_response_id": "r"}, "previous_response_id"),
        (RESPONSES, {"input": "hi", "store": True}, "store"),
        (RESPONSES, {"input": "hi", "background": True}, "background"),
        (RESPONSES, {"input": "hi", "truncation": "auto"}, "truncation"),
        (RESPONSES, {"input": [{"type": "computer_call"}]}, "input[0].type"),
        (RESPONSES, {}, "input"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    server: Live, path: str, body: dict[str, Any], param: str
) -> None:
    status, error = server.refused(path, **body)
    assert (status, error["param"]) == (400, param)
    assert param.rpartition(".")[2].partition("[")[0] in error["message"]
    assert error["type"] == "invalid_request_error"


def test_more_messages_than_tokens_fit_are_refused_before_they_are_written_out(
    server: Live,
) -> None:
    status, error = server.refused(CHAT, messages=HI * 2000)
    assert (status, error["param"]) == (400, "messages")
    assert f"{2000 * len(HI)} messages do not fit the context of 1024 tokens" in error["message"]


def test_the_rest_of_the_protocol(server: Live) -> None:
    (model,) = json.loads(server.ask("/v1/models")[2])["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert json.loads(server.ask("/v1/models/tiny")[2]) == model
    assert server.ask("/v1/models/other")[0] == 404
    status, error = server.refused("/v1/embeddings", input="x")
    assert (status, error["code"]) == (400, "unsupported")
    assert "embeddings" in error["message"]
    slots = json.loads(server.ask("/slots")[2])
    assert (slots["queued"], slots["slots"][0]["is_processing"]) == (0, False)


def test_reasoning_comes_apart(server: Live) -> None:
    """A grammar has the random model think first."""
    opening = server.post(CHAT, messages=HI, logit_bias={}, **GREEDY)
    assert "reasoning_content" not in opening["choices"][0]["message"]
    asked: dict[str, Any] = {"messages": HI, "temperature": 0, "max_tokens": 40}
    form = {"type": "json_object"}
    # Nothing but "<" begins the reasoning, and nothing but "{" the answer.
    less, brace, slash = (server.post("/tokenize", content=each)["tokens"][0] for each in "<{/")
    asked["logit_bias"] = {brace: -100, slash: -100, less: 100}
    made = server.post(CHAT, response_format=form, **asked)
    message = made["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"] == "" or message["content"].startswith("{")
    chunks = server.stream(CHAT, response_format=form, **asked)
    deltas = [data["choices"][0]["delta"] for _, data in chunks[:-1]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning_content"]
