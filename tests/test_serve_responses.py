"""`/v1/responses` has what Open Responses asks for, and passes its test where that is there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripted import scripted
from serving import SECONDS, Live, live

RESPONSES = "/v1/responses"
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"location": "San Francisco, CA"}}\n'
    "</tool_call>"
)
THOUGHT = "<think>\nThey greet me.\n</think>\n\nHello."
# What the prompt ends with tells the model what to say.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{# <tool_call> #}<|im_start|>assistant\n"
    "{% elif reasoning_effort is defined %}{# <think> </think> #}"
    "<|im_start|>assistant:"
    "{% else %}<|im_start|>assistant {% endif %}"
)
WEATHER: dict[str, Any] = {
    "type": "function", "name": "get_weather",
    "parameters": {
        "type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"],
    },
}  # fmt: skip
# What the upstream test sends that this server refuses by name, or has no path for (docs/serve.md).
NOT_HERE = {"image-input", "compact-response", "compact-missing-model"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    said = {" ": "Hello there.", "\n": CALL, ":": THOUGHT}
    model = scripted(tmp_path_factory.mktemp("responses") / "scripted.gguf", TEMPLATE, said)
    with live(model, 1024) as started:
        yield started


def test_a_response_says_how_it_was_asked_for(server: Live) -> None:
    found = server.post(RESPONSES, input="hi")
    expected: dict[str, Any] = {
        "object": "response", "status": "completed", "model": "tiny", "error": None,
        "incomplete_details": None, "previous_response_id": None, "instructions": None, "tools": [],
        "tool_choice": "auto", "truncation": "disabled", "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}}, "top_p": 0.95, "temperature": 0.7,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_logprobs": 0,
        "reasoning": {"effort": None, "summary": None}, "max_output_tokens": None,
        "max_tool_calls": None, "store": False, "background": False, "service_tier": "default",
        "metadata": {}, "safety_identifier": None, "prompt_cache_key": None,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["created_at"] <= found["completed_at"]
    (message,) = found["output"]
    assert (message["role"], message["status"]) == ("assistant", "completed")
    assert message["content"] == [
        {"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []}
    ]
    usage = found["usage"]
    assert usage["output_tokens"] == 2
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert 0 <= usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"]
    again = server.post(RESPONSES, input="hi")["usage"]
    assert again["input_tokens_details"] == {"cached_tokens": usage["input_tokens"] - 1}
    asked: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 1, "metadata": {"a": "b"},
        "presence_penalty": 0.5, "instructions": "be brief", "prompt_cache_key": "k",
        "text": {"format": {"type": "text"}}, "top_logprobs": 2,
    }  # fmt: skip
    found = server.post(RESPONSES, input="hi", **asked)
    assert {name: found[name] for name in asked} == asked
    assert (found["status"], found["completed_at"]) == ("incomplete", None)
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["output"][0]["status"] == "incomplete"


def test_a_call_is_an_item(server: Live) -> None:
    asked = {"input": "weather?", "tools": [WEATHER]}
    found = server.post(RESPONSES, **asked)
    (call,) = found["output"]
    assert (call["type"], call["name"], call["status"]) == (
        "function_call",
        "get_weather",
        "completed",
    )
    assert json.loads(call["arguments"]) == {"location": "San Francisco, CA"}
    assert found["tools"] == [{**WEATHER, "description": None, "strict": None}]
    events = server.stream(RESPONSES, **asked)
    kinds = [name for name, _ in events]
    assert kinds[2] == "response.output_item.added"
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [
        data["delta"] for name, data in events if name == "response.function_call_arguments.delta"
    ]
    assert "".join(deltas) == events[-3][1]["arguments"] == call["arguments"]
    # The call and what came of it go back as items, with the ids that they came with.
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Fog."}
    history = [{"role": "user", "content": "weather?"}, call, output]
    status, error = server.refused(RESPONSES, input=history)
    assert (status, "no place" in error["message"]) == (400, True)  # of this template


def test_reasoning_is_an_item(server: Live) -> None:
    asked: dict[str, Any] = {"input": "hi", "reasoning": {"effort": "low"}}
    found = server.post(RESPONSES, **asked)
    thought, message = found["output"]
    assert thought["type"] == "reasoning"
    assert thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "They greet me."}]
    assert message["content"][0]["text"] == "Hello."
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}
    assert found["reasoning"] == {"effort": "low", "summary": None}
    events = server.stream(RESPONSES, **asked)
    kinds = [name.removeprefix("response.") for name, _ in events if name]
    item = ["output_item.added", "content_part.added"]
    ends = ["content_part.done", "output_item.done"]
    assert [each for each in kinds if not each.endswith("delta")] == [
        "created", "in_progress", *item, "reasoning_text.done", *ends,
        *item, "output_text.done", *ends, "completed",
    ]  # fmt: skip
    assert [data["output_index"] for name, data in events if "output_item" in (name or "")] == [
        0, 0, 1, 1,
    ]  # fmt: skip
    done = events[-1][1]["response"]
    assert [each["content"] for each in done["output"]] == [
        each["content"] for each in found["output"]
    ]


def test_what_was_not_stored_is_not_found(server: Live) -> None:
    status, error = server.refused(RESPONSES, input="hi", previous_response_id="resp_x")
    assert (status, error["code"]) == (400, "previous_response_not_found")


def test_open_responses_compliance(server: Live) -> None:
    """The project's own test, with a model that answers as it wants."""
    folder = Path(__file__).parents[1] / "build" / "openresponses"
    bun = shutil.which("bun") or shutil.which(str(folder / "node_modules" / ".bin" / "bun"))
    if bun is None or not (folder / "bin" / "compliance-test.ts").is_file():
        pytest.skip("no Open Responses compliance test in build/openresponses: docs/serve.md")
    done = subprocess.run(
        [bun, "run", "bin/compliance-test.ts", "--base-url", f"{server.url}v1", "--api-key", "none",
         "--model", "tiny", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    results = json.loads(done.stdout)["results"]
    assert len(results) >= 10
    wrong = {each["id"]: each.get("errors") for each in results if each["status"] == "failed"}
    wrong = {id: why for id, why in wrong.items() if not id.startswith("websocket-")}
    assert set(wrong) <= NOT_HERE, {id: why for id, why in wrong.items() if id not in NOT_HERE}
