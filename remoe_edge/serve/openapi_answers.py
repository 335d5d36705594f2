"""What the server answers, for its description: the parts that clients may rely on."""

from __future__ import annotations

from typing import Any

from remoe_edge.serve.failures import ANTHROPIC

Schema = dict[str, Any]

_TEXT, _WHOLE, _TEXT_OR_NULL = {"type": "string"}, {"type": "integer"}, {"type": ["string", "null"]}


def _with(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_USAGE = _with({"prompt_tokens": _WHOLE, "completion_tokens": _WHOLE, "total_tokens": _WHOLE})
_CHOICE = _with({"index": _WHOLE, "finish_reason": {"enum": ["stop", "length", "tool_calls"]}})
COMPLETION = _with(
    {"id": _TEXT, "object": _TEXT, "created": _WHOLE, "model": _TEXT,
     "choices": {"type": "array", "items": _CHOICE}, "usage": _USAGE}
)  # fmt: skip
RESPONSE = _with(
    {"id": _TEXT, "object": {"const": "response"}, "created_at": _WHOLE, "model": _TEXT,
     "status": {"enum": ["completed", "incomplete"]},
     "output": {"type": "array", "items": _with({"id": _TEXT, "type": _TEXT, "status": _TEXT})},
     "usage": _with({"input_tokens": _WHOLE, "output_tokens": _WHOLE, "total_tokens": _WHOLE})}
)  # fmt: skip
MESSAGE = _with(
    {"id": _TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "model": _TEXT,
     "content": {"type": "array", "items": _with({"type": _TEXT})},
     "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
     "stop_sequence": _TEXT_OR_NULL,
     "usage": _with({"input_tokens": _WHOLE, "output_tokens": _WHOLE})}
)  # fmt: skip
_EMBEDDING = _with(
    {"object": {"const": "embedding"}, "index": _WHOLE,
     "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]}}
)  # fmt: skip
EMBEDDINGS = _with(
    {"object": {"const": "list"}, "model": _TEXT, "data": {"type": "array", "items": _EMBEDDING},
     "usage": _with({"prompt_tokens": _WHOLE, "total_tokens": _WHOLE})}
)  # fmt: skip
COUNT = _with({"input_tokens": _WHOLE})
TOKENS = _with(
    {"tokens": {"type": "array", "items": _WHOLE}, "count": _WHOLE, "max_model_len": _WHOLE}
)
TEXT = _with({"content": _TEXT})
MODEL = _with({"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT})
MODELS = _with({"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}})
_SLOT = _with(
    {"id": _WHOLE, "is_processing": {"type": "boolean"}, "n_prompt": _WHOLE, "n_generated": _WHOLE}
)  # fmt: skip
SLOTS = _with(
    {"slots": {"type": "array", "items": _SLOT}, "queued": _WHOLE, "queue_limit": _WHOLE,
     "misses_by_layer": {"type": ["array", "null"], "items": _WHOLE},
     "power_w": {"type": ["number", "null"]}}
)  # fmt: skip
HEALTH = _with({"status": {"enum": ["loading", "ready", "failed", "closing"]}, "model": _TEXT})

_ERROR = _with(
    {"error": _with({"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
)  # fmt: skip
_ANTHROPIC_ERROR = _with(
    {"type": {"const": "error"}, "error": _with({"type": _TEXT, "message": _TEXT})}
)
_WHY = {
    400: "The request makes no sense, or asks for what cannot be done; the error names the field.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a page of another site, or by another machine's name.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "As many requests wait as may; Retry-After says when to come again.",
    500: "The server or its storage failed.",
    503: "The model is being loaded, has failed to load, or is being closed.",
}


def json(schema: Schema) -> dict[str, Any]:
    """Describe an answer in JSON."""
    return {"description": "It went well.", "content": {"application/json": {"schema": schema}}}


def page(kind: str) -> dict[str, Any]:
    """Describe an answer that is a text."""
    return {"description": "It went well.", "content": {kind: {"schema": {"type": "string"}}}}


def failures(path: str, *statuses: int, has_key: bool) -> dict[str, Any]:
    """Describe the errors of a path."""
    schema = _ANTHROPIC_ERROR if path.startswith(ANTHROPIC) else _ERROR
    known = (*statuses, 403, *((401,) if has_key else ()))
    return {
        str(each): {"description": _WHY[each], "content": {"application/json": {"schema": schema}}}
        for each in sorted(known)
    }
