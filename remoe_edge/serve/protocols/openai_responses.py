"""OpenAI's `/v1/responses`. Nothing is stored, so that each request brings its whole conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remoe_edge.engine.request import TEMPERATURE, TOP_P
from remoe_edge.serve.asks import Chat
from remoe_edge.serve.fields import BadField, Fields, short
from remoe_edge.serve.protocols import chat_messages
from remoe_edge.serve.protocols.sampling import max_tokens, sampling, top_logprobs

_CHANGES_NOTHING = (
    "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options",
    "prompt_cache_retention",
)  # fmt: skip
_MOST_TOP = 20
_NO_TOOL = {"description": None, "parameters": None, "strict": None}


@dataclass(frozen=True)
class ResponsesRequest:
    """Hold what was asked for. echoed: fields that the response repeats."""

    chat: Chat
    stream: bool
    logprobs: bool
    echoed: dict[str, Any]


def read(fields: Fields) -> ResponsesRequest:
    """Read a request. Raises BadField."""
    plain = fields.copy()
    fields.text("model")
    found = _messages(fields)
    settings = sampling(fields)
    settings["max_tokens"] = max_tokens(fields, "max_output_tokens")
    include = fields.items("include")
    logprobs = "message.output_text.logprobs" in include
    unknown = set(map(str, include)) - {
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
    }
    if unknown:
        raise BadField("include", f"include: {short(min(unknown))} is not to be had here")
    top = top_logprobs(fields, "top_logprobs", _MOST_TOP)
    if logprobs or top:
        settings["logprobs"] = top or 0
    tools = [_tool(each) for each in fields.objects("tools")]
    allowed, choice = chat_messages.tools_and_choice(fields, tools, None)
    several = fields.flag("parallel_tool_calls", True)
    schema = _schema(fields)
    variables = _reasoning(fields)
    stream = fields.flag("stream")
    _refuse_others(fields)
    fields.end()
    chat = Chat(
        found, settings, allowed, choice, not several, schema, "text.format", variables, "input"
    )
    return ResponsesRequest(chat, stream, logprobs or bool(top), _echoed(plain))


def _echoed(plain: dict[str, Any]) -> dict[str, Any]:
    """Give what every response says of how it was asked for, what was not given among it."""
    defaults: dict[str, Any] = {
        "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "metadata": {},
        "parallel_tool_calls": True, "temperature": TEMPERATURE, "tool_choice": "auto", "top_p": TOP_P,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "store": False, "background": False,
        "truncation": "disabled", "top_logprobs": 0, "previous_response_id": None,
        "service_tier": "default", "safety_identifier": None, "prompt_cache_key": None,
    }  # fmt: skip
    made = {name: plain.get(name, each) for name, each in defaults.items()}
    made["tools"] = [{**_NO_TOOL, **each} for each in plain.get("tools", [])]
    made["reasoning"] = {"effort": None, "summary": None, **plain.get("reasoning", {})}
    text = dict(plain.get("text", {}))
    form = {"type": "text", **(text.get("format") or {})}
    if form["type"] == "json_schema":
        form = {"name": "", "description": None, "strict": False, "schema": None, **form}
    made["text"] = {**text, "format": form}
    return made


def _refuse_others(fields: Fields) -> None:
    fields.ignore(*_CHANGES_NOTHING)
    fields.refuse("store", "nothing is stored here: set it to false", unless=(False,))
    fields.refuse(
        "previous_response_id", "nothing is stored here: send the whole conversation",
        code="previous_response_not_found",
    )  # fmt: skip
    fields.refuse("conversation", "nothing is stored here: send the whole conversation")
    fields.refuse("background", "this server answers at once", unless=(False,))
    fields.refuse("truncation", "this server cuts no conversation short", unless=("disabled",))
    fields.refuse("prompt", "this server keeps no prompts")
    fields.refuse("max_tool_calls", "this server calls no tools itself")


def _reasoning(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    given = fields.object("reasoning")
    if given is not None:
        effort = given.text("effort")
        if effort is not None:
            found["reasoning_effort"] = effort
        given.refuse("summary", "this server sends reasoning as it is", unless=("auto",))
        given.refuse("generate_summary", "this server sends reasoning as it is")
        given.end()
    return found


def _schema(fields: Fields) -> dict[str, Any] | None:
    text = fields.object("text")
    if text is None:
        return None
    text.refuse("verbosity", "this model has no such setting", unless=("medium",))
    form = text.object("format")
    text.end()
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"))
    schema: dict[str, Any] | None = {} if kind == "json_object" else None
    if kind == "json_schema":
        form.flag("strict")
        form.text("name")
        form.text("description")
        inner = form.object("schema")
        schema = {} if inner is None else inner.plain()
    form.end()
    return schema


def _tool(fields: Fields) -> tuple[Any, bool]:
    kind = fields.needed_text("type")
    if kind != "function":
        raise BadField(
            fields.name("type"), f"{fields.name('type')}: {short(kind)} is no tool of this server"
        )
    made = chat_messages.tool(fields)
    fields.end()
    return made


def _messages(fields: Fields) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    instructions = fields.text("instructions")
    if instructions:
        found.append({"role": "system", "content": instructions})
    given = fields.required("input")
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    reasoning = ""
    for item in fields.objects("input"):
        kind = item.text("type", "message")
        item.ignore("id", "status")
        if kind == "message":
            made = _message(item)
        elif kind == "function_call":
            made = _call(item)
        elif kind == "function_call_output":
            call_id = item.needed_text("call_id")
            made = {"role": "tool", "tool_call_id": call_id}
            made["content"] = chat_messages.text_of(item, "output") or ""
        elif kind == "reasoning":
            item.ignore("summary", "encrypted_content")
            reasoning = chat_messages.text_of(item, "content") or ""
            item.end()
            continue
        else:
            raise BadField(item.name("type"), f"{item.name('type')}: {short(kind)} cannot be read")
        item.end()
        if made["role"] == "assistant" and reasoning:
            made["reasoning_content"], reasoning = reasoning, ""
        _append(found, made)
    if all(each["role"] == "system" for each in found):
        raise BadField("input", "input has no message")
    return found


def _message(item: Fields) -> dict[str, Any]:
    item.required("role")
    role = item.one_of("role", ("user", "assistant", "system", "developer"))
    content = chat_messages.text_of(item, "content")
    if content is None:
        raise BadField(item.name("content"), f"{item.name('content')} is missing")
    item.ignore("phase")
    return {"role": role, "content": content}


def _call(item: Fields) -> dict[str, Any]:
    made = chat_messages.call(
        item.needed_text("call_id"), item.needed_text("name"), item.needed_text("arguments"), item
    )
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def _append(found: list[dict[str, Any]], made: dict[str, Any]) -> None:
    """Add a message; calls join the assistant's message before them, as templates have it."""
    calls = made.get("tool_calls")
    if calls and found and found[-1]["role"] == "assistant":
        found[-1].setdefault("tool_calls", []).extend(calls)
    else:
        found.append(made)
