"""The official clients of OpenAI and Anthropic against a live server, where they are installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from remoe_edge.files.models import shipped_model
from serving import Live, chatting, live

WHY = "not installed: pip install 'remoe-edge[test-clients]'"
HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    if request.param == "shipped":
        model = shipped_model()
    else:
        model = chatting(tmp_path_factory.mktemp("clients"))
    with live(model, api_key="secret") as started:
        started.with_tools = request.param == "tiny"  # type: ignore[attr-defined]
        yield started


@pytest.fixture
def openai(server: Live) -> Any:
    module = pytest.importorskip("openai", reason=f"openai is {WHY}")
    with module.OpenAI(base_url=f"{server.url}v1", api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic(server: Live) -> Any:
    module = pytest.importorskip("anthropic", reason=f"anthropic is {WHY}")
    with module.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as client:
        yield client


def test_openai_chats(openai: Any) -> None:
    assert [each.id for each in openai.models.list()] == ["tiny"]
    asked = {"model": "tiny", "messages": HI, "max_tokens": 8, "temperature": 0}
    made = openai.chat.completions.create(**asked)
    text = made.choices[0].message.content
    assert made.usage.completion_tokens <= 8
    stream = openai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
    )
    chunks = list(stream)
    parts = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(parts) == text
    assert chunks[-1].usage == made.usage
    legacy = openai.completions.create(model="tiny", prompt="abc", max_tokens=4, echo=True)
    assert legacy.choices[0].text.startswith("abc")


def test_openai_responds(openai: Any) -> None:
    asked = {
        "model": "tiny",
        "input": "hi",
        "max_output_tokens": 8,
        "temperature": 0,
        "store": False,
    }
    made = openai.responses.create(**asked)
    assert made.status in ("completed", "incomplete")
    with openai.responses.stream(**asked) as stream:
        for event in stream:
            last = event
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == made.output_text


def test_openai_calls_a_tool(openai: Any, server: Live) -> None:
    module = pytest.importorskip("openai")
    asked: dict[str, Any] = {
        "model": "tiny", "messages": HI, "max_tokens": 200, "temperature": 0, "tools": [WEATHER],
        "tool_choice": "required", "parallel_tool_calls": False,
    }  # fmt: skip
    if not server.with_tools:  # type: ignore[attr-defined]
        with pytest.raises(module.BadRequestError, match="no place for"):
            openai.chat.completions.create(**asked)
        return
    less, slash = (server_token(server, each) for each in "</")
    asked["logit_bias"] = {less: 50, slash: 100}  # a random model thinks without end otherwise
    made = openai.chat.completions.create(**asked).choices[0]
    assert made.finish_reason == "tool_calls"
    (call,) = made.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    text = ""
    for chunk in openai.chat.completions.create(**asked, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            text += part.function.arguments or ""
    assert text == call.function.arguments


def server_token(server: Live, text: str) -> str:
    headers = {"Authorization": "Bearer secret"}
    return str(
        json.loads(server.ask("/tokenize", {"content": text}, headers=headers)[2])["tokens"][0]
    )


def test_openai_knows_our_errors(openai: Any, server: Live) -> None:
    module = pytest.importorskip("openai")
    with pytest.raises(module.BadRequestError) as caught:
        openai.chat.completions.create(model="tiny", messages=HI, extra_body={"mirostat": 1})
    assert caught.value.param == "mirostat"
    with pytest.raises(module.BadRequestError, match="embeddings"):
        openai.embeddings.create(model="tiny", input="x")
    wrong = module.OpenAI(base_url=f"{server.url}v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(module.AuthenticationError):
        wrong.models.list()


def test_anthropic_chats(anthropic: Any) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": HI, "max_tokens": 8, "system": "be brief",
        "extra_body": {"temperature": 0},  # some of its versions have no argument for it
    }  # fmt: skip
    made = anthropic.messages.create(**asked)
    with anthropic.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert last.content[0].text == text == made.content[0].text
    assert last.usage.output_tokens == made.usage.output_tokens
    assert last.stop_reason == made.stop_reason


def test_anthropic_knows_our_errors(anthropic: Any, server: Live) -> None:
    module = pytest.importorskip("anthropic")
    with pytest.raises(module.BadRequestError, match="mirostat"):
        anthropic.messages.create(
            model="tiny", messages=HI, max_tokens=3, extra_body={"mirostat": 1}
        )
    wrong = module.Anthropic(base_url=server.url, api_key="wrong", max_retries=0)
    with wrong, pytest.raises(module.AuthenticationError):
        wrong.messages.create(model="tiny", messages=HI, max_tokens=3)
