"""Anthropic's protocol against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from serving import HI, PLAIN_HERMES, Live, chatting, live

PATH = "/v1/messages"
TOOL = {
    "name": "add", "description": "Add.",
    "input_schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    # Without reasoning, which a random model might never end: these requests can bring no bias.
    with live(chatting(tmp_path_factory.mktemp("anthropic"), PLAIN_HERMES)) as started:
        yield started


def test_a_message_is_what_the_chat_says(server: Live) -> None:
    chat = server.post("/v1/chat/completions", messages=HI, temperature=0, max_tokens=12)
    text = chat["choices"][0]["message"]["content"]
    asked = {"model": "x", "messages": HI, "temperature": 0, "max_tokens": 12}
    made = server.post(PATH, **asked)
    assert made["content"] == [{"type": "text", "text": text}]
    assert (made["type"], made["role"]) == ("message", "assistant")
    assert made["stop_reason"] in ("end_turn", "max_tokens")
    assert made["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    found = server.stream(PATH, **asked)
    assert all(name == data["type"] for name, data in found)
    kinds = [name for name, _ in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [data["delta"]["text"] for name, data in found if name == "content_block_delta"]
    assert "".join(deltas) == text
    assert found[-2][1]["delta"]["stop_reason"] == made["stop_reason"]
    assert found[-2][1]["usage"]["output_tokens"] == made["usage"]["output_tokens"]


def test_a_stop_sequence_is_named(server: Live) -> None:
    text = server.post(PATH, messages=HI, temperature=0, max_tokens=12)["content"][0]["text"]
    mark = text[2:4]
    made = server.post(
        PATH, messages=HI, temperature=0, max_tokens=12, stop_sequences=["\x07\x07", mark]
    )
    assert (made["stop_reason"], made["stop_sequence"]) == ("stop_sequence", mark)


def test_an_answer_goes_on_from_a_message_of_the_assistant(server: Live) -> None:
    """In each protocol: what is said in two requests is what is said in one."""
    greedy: dict[str, Any] = {"temperature": 0}
    whole = server.post(PATH, messages=HI, max_tokens=12, **greedy)
    text = whole["content"][0]["text"]
    begun = [*HI, {"role": "assistant", "content": text[:4]}]
    n_asked = whole["usage"]["input_tokens"]
    n_begun = server.post(f"{PATH}/count_tokens", messages=begun)["input_tokens"] - n_asked
    assert 1 <= n_begun <= 4
    n_left = whole["usage"]["output_tokens"] - n_begun
    made = server.post(PATH, messages=begun, max_tokens=n_left, **greedy)
    assert made["content"] == [{"type": "text", "text": text[4:]}]
    assert made["usage"]["input_tokens"] == n_asked + n_begun
    chat = server.post("/v1/chat/completions", messages=begun, max_tokens=n_left, **greedy)
    assert chat["choices"][0]["message"]["content"] == text[4:]
    response = server.post("/v1/responses", input=begun, max_output_tokens=n_left, **greedy)
    assert response["output"][-1]["content"][0]["text"] == text[4:]


def test_what_an_answer_cannot_go_on_with_is_refused(server: Live) -> None:
    use = {"type": "tool_use", "id": "abcdefghi", "name": "add", "input": {"a": 1}}
    begun = {"role": "assistant", "content": "I add"}
    called = {"role": "assistant", "content": [{"type": "text", "text": "I add"}, use]}
    asked = {"max_tokens": 3, "tools": [TOOL]}
    _, error = server.refused(PATH, messages=[*HI, called], **asked)
    assert "their results have to follow" in error["message"]
    _, error = server.refused(PATH, messages=[*HI, begun], tool_choice={"type": "any"}, **asked)
    assert "tool_choice: the answer goes on from the last message" in error["message"]
    form = {"type": "json_object"}
    _, error = server.refused("/v1/chat/completions", messages=[*HI, begun], response_format=form)
    assert error["param"] == "response_format"
    assert "end messages with a message of the user" in error["message"]


def test_a_tool_is_used(server: Live) -> None:
    asked: dict[str, Any] = {
        "messages": HI, "max_tokens": 300, "temperature": 0, "tools": [TOOL],
        "system": [{"type": "text", "text": "be brief"}], "thinking": {"type": "disabled"},
    }  # fmt: skip
    for choice in (
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "add"},
    ):
        made = server.post(PATH, tool_choice=choice, **asked)
        uses = [each for each in made["content"] if each["type"] == "tool_use"]
        assert uses[0]["name"] == "add"
        assert uses[0]["input"]["a"] in (1, 2)
        assert made["stop_reason"] == "tool_use"
        found = server.stream(PATH, tool_choice=choice, **asked)
        parts = [d["delta"].get("partial_json", "") for n, d in found if n == "content_block_delta"]
        assert json.loads("".join(parts)) == uses[0]["input"]
    back = [
        *HI,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "I add"},
            {"type": "tool_use", "id": "abcdefghi", "name": "add", "input": {"a": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "abcdefghi", "content": "2"},
            {"type": "text", "text": "so?"}]},
    ]  # fmt: skip
    made = server.post(PATH, **{**asked, "messages": back, "max_tokens": 3})
    assert made["usage"]["output_tokens"] <= 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": HI}, "max_tokens"),
        ({"max_tokens": 3}, "messages"),
        ({"messages": HI, "max_tokens": 3, "temperature": 1.5}, "temperature"),
        ({"messages": HI, "max_tokens": 3, "container": "c"}, "container"),
        ({"messages": HI, "max_tokens": 3, "seed": 1}, "seed"),
        ({"messages": [{"role": "system", "content": "x"}], "max_tokens": 3}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 3}, "image"),
        ({"messages": HI, "max_tokens": 3, "tools": [{"type": "bash_20250124", "name": "b"}]}, "bash"),
        ({"messages": HI, "max_tokens": 3, "thinking": {"type": "enabled", "budget_tokens": 1024}},
         "budget_tokens"),
    ],
)  # fmt: skip
def test_errors_have_its_form(server: Live, body: dict[str, Any], said: str) -> None:
    status, _, data = server.ask(PATH, body)
    found = json.loads(data)
    assert (status, found["type"]) == (400, "error")
    assert found["error"]["type"] == "invalid_request_error"
    assert said in found["error"]["message"]
