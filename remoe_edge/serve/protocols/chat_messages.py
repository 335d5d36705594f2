"""Messages as OpenAI's protocols write them, made into those that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from remoe_edge.names import named_twice
from remoe_edge.serve.fields import BadField, Fields, short
from remoe_edge.serve.tools.format import Tool

ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_TOOLS = 128
_LONGEST_NAME = 128


def messages(fields: Fields) -> list[dict[str, Any]]:
    """Read `messages`, of which there is at least one."""
    fields.required("messages")
    found = [message(each) for each in fields.objects("messages")]
    if not found:
        raise BadField("messages", "messages has no message")
    return found


def message(fields: Fields) -> dict[str, Any]:
    """Read one message."""
    fields.required("role")
    role = fields.one_of("role", ROLES)
    made: dict[str, Any] = {"role": role}
    content = text_of(fields, "content")
    if role == "assistant":
        calls = [_call(each) for each in fields.objects("tool_calls")]
        if calls:
            made["tool_calls"] = calls
        elif content is None:
            raise BadField(fields.name("content"), f"{fields.name('content')} is missing")
        for name in ("reasoning_content", "reasoning"):
            reasoning = fields.text(name)
            if reasoning:
                made["reasoning_content"] = reasoning
        fields.ignore("refusal", "annotations", "remoe_edge")
        fields.refuse("audio", "this server knows texts alone")
        fields.refuse("function_call", "use tool_calls")
    elif content is None:
        raise BadField(fields.name("content"), f"{fields.name('content')} is missing")
    if role == "tool":
        made["tool_call_id"] = fields.needed_text("tool_call_id")
    author = fields.text("name")
    if author is not None:
        made["name"] = author
    made["content"] = content or ""
    fields.end()
    return made


def text_of(fields: Fields, name: str) -> str | None:
    """Read a content: a text, or parts that are texts; None where there is none."""
    value = fields.any(name)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadField(fields.name(name), f"{fields.name(name)} is a text, or a list of parts")
    return "".join(_part(Fields(each, f"{fields.name(name)}[{i}]")) for i, each in enumerate(value))


def _part(fields: Fields) -> str:
    kind = fields.needed_text("type")
    if kind == "refusal":
        refused = fields.needed_text("refusal")
        fields.end()
        return refused
    if kind not in ("text", "input_text", "output_text", "summary_text", "reasoning_text"):
        raise BadField(
            fields.name("type"), f"{fields.name('type')}: {short(kind)} cannot be read, only texts"
        )
    fields.ignore("annotations", "logprobs", "cache_control")
    found = fields.needed_text("text")
    fields.end()
    return found


def _call(fields: Fields) -> dict[str, Any]:
    if fields.text("type", "function") != "function":
        raise BadField(fields.name("type"), f"{fields.name('type')} is function")
    fields.ignore("index")
    call_id = fields.needed_text("id")
    function = fields.object("function")
    if function is None:
        raise BadField(fields.name("function"), f"{fields.name('function')} is missing")
    made = call(call_id, function.needed_text("name"), function.needed_text("arguments"), function)
    function.end()
    fields.end()
    return made


def call(call_id: str, name: str, arguments: str, fields: Fields) -> dict[str, Any]:
    """Make a call as templates have it, with its arguments as an object."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadField(fields.name("arguments"), f"{fields.name('arguments')} is no JSON object")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": found}}


# --- tools ---


def tool(fields: Fields, parameters: str = "parameters") -> tuple[Tool, bool]:
    """Read a function; tell too whether its calls have to follow its schema."""
    name = fields.needed_text("name")
    if (
        not 0 < len(name) <= _LONGEST_NAME
        or not name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    ):
        raise BadField(
            fields.name("name"), f"{fields.name('name')} has letters, digits, '_', '-' and '.'"
        )
    description = fields.text("description")
    given = fields.object(parameters)
    strict = fields.flag("strict")
    made = Tool(name, description, {} if given is None else given.plain())
    return made, strict


def check_tools(tools: Sequence[tuple[Tool, bool]], choice: str) -> tuple[Tool, ...]:
    """Refuse two of a name, too many, and a strictness that cannot be kept."""
    if len(tools) > _MOST_TOOLS:
        raise BadField("tools", f"there are {len(tools)} tools, and up to {_MOST_TOOLS} may be")
    if (twice := named_twice(each.name for each, _ in tools)) is not None:
        raise BadField("tools", f"two tools are called {twice}")
    if choice == "auto" and any(strict for _, strict in tools):
        raise BadField(
            "tools",
            "strict: a call that the model chooses to make cannot be held to its schema; set strict to "
            "false, or tool_choice to required or to a function",
        )
    return tuple(each for each, _ in tools)


def chosen(tools: tuple[Tool, ...], name: str) -> tuple[Tool, ...]:
    """Leave the one tool that has to be called."""
    found = tuple(each for each in tools if each.name == name)
    if not found:
        raise BadField("tool_choice", f"tool_choice: there is no tool {short(name)}")
    return found


def tools_and_choice(
    fields: Fields, tools: Sequence[tuple[Tool, bool]], function: str | None
) -> tuple[tuple[Tool, ...], str]:
    """Read `tool_choice`. function: the field that has a function's name; None: it is beside `type`."""
    value = fields.any("tool_choice", "auto")
    name = None
    if isinstance(value, str):
        choice = value
        if choice not in ("none", "auto", "required"):
            raise BadField("tool_choice", "tool_choice is none, auto, required or a function")
    else:
        wanted = Fields(value, "tool_choice")
        if wanted.needed_text("type") != "function":
            raise BadField("tool_choice.type", "tool_choice.type: only function can be chosen here")
        inner = wanted if function is None else wanted.object(function)
        if inner is None:
            raise BadField("tool_choice", f"tool_choice.{function} is missing")
        choice, name = "named", inner.needed_text("name")
        wanted.end()
    checked = check_tools(tools, choice)
    if not checked and choice in ("required", "named"):
        raise BadField("tool_choice", f"tool_choice is {choice}, and there are no tools")
    return (checked if name is None else chosen(checked, name)), choice
