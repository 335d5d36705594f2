"""The server's description of itself, for `/openapi.json`: OpenAPI 3.1.

Every field that a protocol reads is named here, and nothing else may be sent. What is null counts as not
given. A request that keeps to this may still be refused with status 400: it may be too long for the
context, or ask for what the model cannot do.
"""

from __future__ import annotations

from typing import Any

import remoe_edge
from remoe_edge.serve import openapi_answers as answers
from remoe_edge.serve.openapi_schemas import (
    ANY,
    FLAG,
    ROLES_OF_TEXT,
    array,
    choice,
    number,
    obj,
    only,
    text,
    whole,
)

_INT32_MAX = 2**31 - 1
_PART = obj(
    {"type": choice("text", "input_text", "output_text", "summary_text", "reasoning_text"),
     "text": text(), "annotations": ANY, "logprobs": ANY, "cache_control": ANY},
    "type", "text",
)  # fmt: skip
_REFUSAL = obj({"type": choice("refusal"), "refusal": text()}, "type", "refusal")
_CONTENT = {"anyOf": [text(), array({"anyOf": [_PART, _REFUSAL]})]}
_NAME = {**text(1, 128), "pattern": r"^[A-Za-z0-9_.-]*[A-Za-z0-9][A-Za-z0-9_.-]*$"}
_SCHEMA = {"type": "object"}
_FUNCTION = obj(
    {"name": _NAME, "description": text(), "parameters": _SCHEMA, "strict": FLAG}, "name"
)  # fmt: skip
_CALL = obj(
    {"id": text(), "type": choice("function"), "index": ANY,
     "function": obj({"name": text(), "arguments": text()}, "name", "arguments")},
    "id", "function",
)  # fmt: skip
_SAMPLING = {
    "temperature": number(0, 100), "top_p": number(0, 1), "min_p": number(0, 1),
    "top_k": whole(0, _INT32_MAX), "seed": whole(0, 2**32 - 2),
    "frequency_penalty": number(-2, 2), "presence_penalty": number(-2, 2),
    "repeat_penalty": number(1e-3, 100), "repetition_penalty": number(1e-3, 100),
    "stop": {"anyOf": [text(1, 1000), array(text(1, 1000), most=16)]},
    "logit_bias": {
        "type": "object", "propertyNames": {"pattern": r"^[0-9]{1,9}$"}, "maxProperties": 4096,
        "additionalProperties": number(-100, 100),
    },
    "best_of": only(1),
}  # fmt: skip
_STREAM = {
    "stream": FLAG,
    "stream_options": obj({"include_usage": FLAG, "include_obfuscation": ANY}),
}  # fmt: skip
_FORM = {
    "anyOf": [
        obj({"type": choice("text", "json_object")}, "type"),
        obj(
            {"type": choice("json_schema"),
             "json_schema": obj(
                 {"name": text(), "description": text(), "strict": FLAG, "schema": _SCHEMA})},
            "type", "json_schema",
        ),
    ]
}  # fmt: skip


def _messages() -> dict[str, Any]:
    plain = {"content": _CONTENT, "name": text()}
    assistant = {
        "role": choice("assistant"), **plain, "tool_calls": array(_CALL), "reasoning_content": text(),
        "reasoning": text(), "refusal": ANY, "annotations": ANY, "remoe_edge": ANY,
    }  # fmt: skip
    return array(
        {
            "anyOf": [
                obj({"role": choice(*ROLES_OF_TEXT), **plain}, "role", "content"),
                obj(assistant, "role"),
                obj({"role": choice("tool"), **plain, "tool_call_id": text()},
                    "role", "content", "tool_call_id"),
            ]
        },
        least=1,
    )  # fmt: skip


def _chat() -> dict[str, Any]:
    tool = obj({"type": choice("function"), "function": _FUNCTION}, "type", "function")
    chosen = obj(
        {"type": choice("function"), "function": obj({"name": text()}, "name")}, "type", "function"
    )  # fmt: skip
    return obj(
        {
            "model": text(), "messages": _messages(), **_SAMPLING, **_STREAM,
            "max_tokens": whole(1, _INT32_MAX), "max_completion_tokens": whole(1, _INT32_MAX),
            "n": whole(1, 128), "logprobs": FLAG, "top_logprobs": whole(0, 20),
            "tools": array(tool, most=128),
            "tool_choice": {"anyOf": [choice("none", "auto", "required"), chosen]},
            "parallel_tool_calls": FLAG, "response_format": _FORM, "chat_template_kwargs": _SCHEMA,
            "reasoning_effort": text(), "store": only(False), "modalities": only(["text"]),
            "verbosity": only("medium"), "user": ANY, "metadata": ANY, "service_tier": ANY,
            "safety_identifier": ANY, "prompt_cache_key": ANY, "prompt_cache_retention": ANY,
        },
        "messages",
    )  # fmt: skip


def _completion() -> dict[str, Any]:
    ids = array({"type": "integer", "minimum": 0}, least=1)
    one = {"anyOf": [text(), ids]}
    return obj(
        {
            "model": text(), "prompt": {"anyOf": [text(), ids, array(one, least=1, most=128)]},
            **_SAMPLING, **_STREAM, "max_tokens": whole(0, _INT32_MAX), "n": whole(1, 128),
            "echo": FLAG, "logprobs": whole(0, 5), "suffix": only(""), "user": ANY,
        },
        "prompt",
    )  # fmt: skip


def _embedding() -> dict[str, Any]:
    ids = array({"type": "integer", "minimum": 0}, least=1)
    one = {"anyOf": [text(1), ids]}
    return obj(
        {
            "model": text(), "input": {"anyOf": [text(1), ids, array(one, least=1, most=2048)]},
            "encoding_format": choice("float", "base64"), "dimensions": whole(1, _INT32_MAX),
            "user": ANY,
        },
        "input",
    )  # fmt: skip


def _response() -> dict[str, Any]:
    tool = obj({"type": choice("function"), **_FUNCTION["properties"]}, "type", "name")
    chosen = obj({"type": choice("function"), "name": text()}, "type", "name")
    same = {"id": ANY, "status": ANY}
    items = {
        "anyOf": [
            obj({**same, "type": choice("message"), "phase": ANY, "content": _CONTENT,
                 "role": choice("user", "assistant", "system", "developer")}, "role", "content"),
            obj({**same, "type": choice("function_call"), "call_id": text(), "name": text(),
                 "arguments": text()}, "type", "call_id", "name", "arguments"),
            obj({**same, "type": choice("function_call_output"), "call_id": text(),
                 "output": _CONTENT}, "type", "call_id"),
            obj({**same, "type": choice("reasoning"), "summary": ANY, "encrypted_content": ANY,
                 "content": _CONTENT}, "type"),
        ]
    }  # fmt: skip
    form = obj(
        {"type": choice("text", "json_object", "json_schema"), "name": text(), "description": text(),
         "strict": FLAG, "schema": _SCHEMA})  # fmt: skip
    return obj(
        {
            "model": text(), "input": {"anyOf": [text(), array(items, least=1)]},
            "instructions": text(), **_SAMPLING, "max_output_tokens": whole(1, _INT32_MAX),
            "include": array(choice("message.output_text.logprobs", "reasoning.encrypted_content")),
            "top_logprobs": whole(0, 20), "tools": array(tool, most=128),
            "tool_choice": {"anyOf": [choice("none", "auto", "required"), chosen]},
            "parallel_tool_calls": FLAG, "stream": FLAG,
            "text": obj({"format": form, "verbosity": only("medium")}),
            "reasoning": obj({"effort": text(), "summary": only("auto")}),
            "store": only(False), "background": only(False), "truncation": only("disabled"),
            "user": ANY, "metadata": ANY, "service_tier": ANY, "safety_identifier": ANY,
            "prompt_cache_key": ANY, "prompt_cache_retention": ANY, "stream_options": ANY,
        },
        "input",
    )  # fmt: skip


def _message() -> dict[str, Any]:
    same = {"cache_control": ANY}
    say = obj({**same, "type": choice("text"), "text": text(), "citations": ANY}, "type", "text")
    thought = obj(
        {**same, "type": choice("thinking"), "thinking": text(), "signature": ANY}, "type", "thinking"
    )  # fmt: skip
    use = obj(
        {**same, "type": choice("tool_use"), "id": text(), "name": text(), "input": _SCHEMA,
         "caller": ANY}, "type", "id", "name",
    )  # fmt: skip
    result = obj(
        {**same, "type": choice("tool_result"), "tool_use_id": text(), "content": _CONTENT,
         "is_error": FLAG}, "type", "tool_use_id",
    )  # fmt: skip

    def said(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
        content = {"anyOf": [text(), array({"anyOf": list(blocks)})]}
        return obj({"role": choice(role), "content": content}, "role", "content")

    tool = obj(
        {**same, "type": choice("custom"), "name": _NAME, "description": text(),
         "input_schema": _SCHEMA, "strict": FLAG}, "name",
    )  # fmt: skip
    chosen = obj(
        {"type": choice("auto", "any", "tool", "none"), "name": text(),
         "disable_parallel_tool_use": FLAG}, "type",
    )  # fmt: skip
    thinking = obj({"type": choice("enabled", "disabled", "adaptive"), "display": ANY}, "type")
    return obj(
        {
            "model": text(), "max_tokens": whole(1, _INT32_MAX), "system": _CONTENT,
            "messages": array(
                {"anyOf": [said("user", say, result), said("assistant", say, thought, use)]}, least=1
            ),
            "temperature": number(0, 1), "top_p": number(0, 1), "top_k": whole(0, _INT32_MAX),
            "stop_sequences": _SAMPLING["stop"], "tools": array(tool, most=128),
            "tool_choice": chosen, "thinking": thinking, "stream": FLAG,
            "metadata": ANY, "service_tier": ANY, "betas": ANY,
        },
        "messages", "max_tokens",
    )  # fmt: skip


def _count() -> dict[str, Any]:
    made = _message()
    return {**made, "required": ["messages"]}


def _tokens() -> dict[str, Any]:
    return obj(
        {"content": text(), "prompt": text(), "add_special": FLAG, "parse_special": FLAG, "model": ANY}
    )  # fmt: skip


_IDS = obj({"tokens": array({"type": "integer", "minimum": 0}), "model": ANY}, "tokens")


def description(*, has_key: bool) -> dict[str, Any]:
    """Describe the server. has_key: clients have to send one."""
    posts = {
        "/v1/chat/completions": ("Answer a chat.", _chat(), answers.COMPLETION, True),
        "/v1/completions": ("Continue a text.", _completion(), answers.COMPLETION, True),
        "/v1/responses": ("Answer a chat, as items.", _response(), answers.RESPONSE, True),
        "/v1/messages": ("Answer a chat, as Anthropic has it.", _message(), answers.MESSAGE, True),
        "/v1/embeddings": ("Turn texts into vectors.", _embedding(), answers.EMBEDDINGS, False),
        "/v1/messages/count_tokens": ("Count a chat's tokens.", _count(), answers.COUNT, False),
        "/tokenize": ("Turn a text into tokens.", _tokens(), answers.TOKENS, False),
        "/detokenize": ("Turn tokens into a text.", _IDS, answers.TEXT, False),
    }  # fmt: skip
    paths: dict[str, Any] = {
        path: {"post": _post(path, *about, has_key=has_key)} for path, about in posts.items()
    }
    gets = {
        "/v1/models": ("Tell which model there is.", answers.json(answers.MODELS)),
        "/slots": ("Tell what is being answered.", answers.json(answers.SLOTS)),
        "/metrics": ("Give Prometheus its figures.", answers.page("text/plain")),
    }  # fmt: skip
    for path, (summary, found) in gets.items():
        responses = {"200": found, **answers.failures(path, has_key=has_key)}
        paths[path] = {"get": {"summary": summary, "responses": responses}}
    paths["/v1/models/{name}"] = {
        "get": {
            "summary": "Tell of the model.",
            "parameters": [
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            ],
            "responses": {
                "200": answers.json(answers.MODEL),
                **answers.failures("/v1/models/x", 404, has_key=has_key),
            },
        }
    }
    health = {"200": answers.json(answers.HEALTH), "503": answers.json(answers.HEALTH)}
    paths["/health"] = {
        "get": {"summary": "Say how it is doing.", "security": [], "responses": health}
    }
    paths["/openapi.json"] = {
        "get": {
            "summary": "Give this description.",
            "security": [],
            "responses": {"200": answers.json({"type": "object"})},
        }
    }
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "remoe-edge", "version": remoe_edge.__version__},
        "paths": paths,
    }
    if has_key:
        made["components"] = {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        }
        made["security"] = [{"bearer": []}, {"header": []}]
    return made


def _post(
    path: str,
    summary: str,
    asked: dict[str, Any],
    answer: dict[str, Any],
    streams: bool,
    *,
    has_key: bool,
) -> dict[str, Any]:
    found = answers.json(answer)
    more: tuple[int, ...] = ()
    if streams:
        found["content"]["text/event-stream"] = {}  # its events are told in docs/serve.md
    if streams or answer is answers.EMBEDDINGS:
        more = (429, 500)
    return {
        "summary": summary,
        "requestBody": _body(asked),
        "responses": {
            "200": found,
            **answers.failures(path, 400, 408, 413, 415, 503, *more, has_key=has_key),
        },
    }


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}
