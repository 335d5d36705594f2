"""Clients that people have, the official ones among them, against a live server, where installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remoe_edge.files.models import shipped_model
from serving import SECONDS, Live, chatting, live

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


def test_langchain(server: Live) -> None:
    module = pytest.importorskip("langchain_openai", reason=f"langchain-openai is {WHY}")
    settings = {"base_url": f"{server.url}v1", "api_key": "secret", "max_retries": 0}
    chat = module.ChatOpenAI(model="tiny", temperature=0, max_tokens=8, **settings)
    made = chat.invoke([("system", "be brief"), ("human", "hi")])
    assert made.content
    parts = list(chat.stream([("system", "be brief"), ("human", "hi")]))
    assert "".join(each.content for each in parts) == made.content
    assert made.usage_metadata["output_tokens"] <= 8
    text = module.OpenAI(model="tiny", temperature=0, max_tokens=4, **settings)
    assert isinstance(text.invoke("abc"), str)
    if not server.with_tools:  # type: ignore[attr-defined]
        return
    asked = chat.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False)
    less, slash = (server_token(server, each) for each in "</")
    asked = asked.bind(max_tokens=200, logit_bias={less: 50, slash: 100})
    (call,) = asked.invoke("hi").tool_calls
    assert (call["name"], call["args"]["city"] in ("Oslo", "Rome")) == ("weather", True)


def test_llama_index(server: Live) -> None:
    like = pytest.importorskip(
        "llama_index.llms.openai_like", reason=f"llama-index-llms-openai-like is {WHY}"
    )
    plain = pytest.importorskip("llama_index.llms.openai")
    types = pytest.importorskip("llama_index.core.llms")
    settings = {
        "api_base": f"{server.url}v1", "api_key": "secret", "max_retries": 0, "temperature": 0,
        "max_tokens": 8,
    }  # fmt: skip
    asked = [types.ChatMessage(role="user", content="hi")]
    # OpenAI's own class knows its models' names alone; this server takes any.
    for model in (
        like.OpenAILike(model="tiny", is_chat_model=True, context_window=512, **settings),
        plain.OpenAI(model="gpt-4o-mini", **settings),
    ):
        made = model.chat(asked).message.content
        assert made
        assert "".join(each.delta or "" for each in model.stream_chat(asked)) == made
    text = like.OpenAILike(model="tiny", is_chat_model=False, context_window=512, **settings)
    assert isinstance(text.complete("abc").text, str)


def test_llm(server: Live, tmp_path: Path) -> None:
    """Simon Willison's `llm`, told of the server in its extra-openai-models.yaml."""
    pytest.importorskip("llm", reason=f"llm is {WHY}")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: board\n  model_name: tiny\n  api_base: {server.url}v1\n  api_key_name: board\n"
    )
    (tmp_path / "keys.json").write_text('{"board": "secret"}')
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    said = []
    for more in ([], ["--no-stream"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "board", "hi", "-o", "temperature", "0", "-o",
             "max_tokens", "8", *more],
            env=environment, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0].strip()
    assert said[0] == said[1]


JAVASCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "v1", apiKey: "secret", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const asked = { model: "tiny", messages, max_tokens: 8, temperature: 0 };
const made = await client.chat.completions.create(asked);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? "";
const answered = await client.responses.create(
  { model: "tiny", input: "hi", max_output_tokens: 8, temperature: 0, store: false });
let refused = "";
try { await client.chat.completions.create({ ...asked, mirostat: 1 }); }
catch (error) { refused = `${error.status} ${error.param}`; }
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify(
  { whole: made.choices[0].message.content, streamed, answered: answered.output_text, refused, models }));
"""


def test_openai_in_javascript(server: Live) -> None:
    node = shutil.which("node")
    folder = Path(__file__).parents[1] / "build" / "clients"
    if node is None or not (folder / "node_modules" / "openai").is_dir():
        pytest.skip("no node with openai: npm install --prefix build/clients openai")
    script = folder / "conversation.mjs"
    script.write_text(JAVASCRIPT)
    done = subprocess.run(
        [node, script, server.url], capture_output=True, text=True, timeout=SECONDS
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == found["streamed"] == found["answered"] != ""
    assert (found["refused"], found["models"]) == ("400 mirostat", ["tiny"])
