"""Anthropic's `/v1/messages`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from remoe_edge.serve.asks import Chat
from remoe_edge.serve.events import Event, Finish, Reasoning, Text, ToolArguments, ToolBegin
from remoe_edge.serve.fields import BadField, Fields, short
from remoe_edge.serve.protocols import chat_messages
from remoe_edge.serve.protocols.reply import Frame, Gathered, costs, new_id
from remoe_edge.serve.protocols.sampling import max_tokens, stop_strings


@dataclass(frozen=True)
class MessagesRequest:
    """Hold what was asked for."""

    chat: Chat
    stream: bool


def read(fields: Fields, *, counting: bool = False) -> MessagesRequest:
    """Read a request; counting: one whose tokens are only to be counted. Raises BadField."""
    fields.text("model")
    if not counting:
        fields.required("max_tokens")
    settings: dict[str, Any] = {"max_tokens": max_tokens(fields, "max_tokens")}
    for name in ("temperature", "top_p"):
        value = fields.number(name, 0, 1)
        if value is not None:
            settings[name] = value
    top_k = fields.whole("top_k", 0, 2**31 - 1)
    if top_k is not None:
        settings["top_k"] = top_k
    settings["stop"] = stop_strings(fields, "stop_sequences")
    found = _messages(fields)
    tools = [_tool(each) for each in fields.objects("tools")]
    allowed, choice, one_call = _choice(fields, tools)
    stream = fields.flag("stream")
    variables = _thinking(fields)
    fields.ignore("metadata", "service_tier", "betas")
    for name in (
        "container",
        "mcp_servers",
        "context_management",
        "output_config",
        "output_format",
    ):
        fields.refuse(name, "this server has none")
    fields.end()
    chat = Chat(found, settings, allowed, choice, one_call, variables=variables)
    return MessagesRequest(chat, stream)


def _thinking(fields: Fields) -> dict[str, Any]:
    thinking = fields.object("thinking")
    if thinking is None:
        return {}
    kind = thinking.one_of("type", ("enabled", "disabled", "adaptive"))
    # Its budget cannot be kept: a model thinks as long as it does.
    thinking.refuse("budget_tokens", "a model's reasoning cannot be bounded apart from max_tokens")
    thinking.ignore("display")
    thinking.end()
    return {} if kind == "adaptive" else {"enable_thinking": kind == "enabled"}


def _messages(fields: Fields) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    system = chat_messages.text_of(fields, "system")
    if system:
        found.append({"role": "system", "content": system})
    fields.required("messages")
    for each in fields.objects("messages"):
        found += _message(each)
    if all(each["role"] == "system" for each in found):
        raise BadField("messages", "messages has no message")
    return found


def _message(fields: Fields) -> list[dict[str, Any]]:
    """Read a message, which templates may need as several: a tool's result is one of its own."""
    fields.required("role")
    role = fields.one_of("role", ("user", "assistant"))
    content = fields.required("content")
    fields.end()
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise BadField(
            fields.name("content"), f"{fields.name('content')} is a text, or a list of blocks"
        )
    made: dict[str, Any] = {"role": role, "content": ""}
    results: list[dict[str, Any]] = []
    for i, value in enumerate(content):
        block = Fields(value, f"{fields.name('content')}[{i}]")
        kind = block.needed_text("type")
        block.ignore("cache_control")
        if kind == "text":
            made["content"] += block.needed_text("text")
            block.ignore("citations")
        elif kind == "thinking" and role == "assistant":
            made["reasoning_content"] = made.get("reasoning_content", "") + block.needed_text(
                "thinking"
            )
            block.ignore("signature")
        elif kind == "tool_use" and role == "assistant":
            made.setdefault("tool_calls", []).append(_use(block))
        elif kind == "tool_result" and role == "user":
            results.append(_result(block))
        else:
            raise BadField(
                block.name("type"), f"{block.name('type')}: {short(kind)} cannot be read"
            )
        block.end()
    alone = bool(results) and not made["content"]
    return results if alone else [*results, made]


def _use(block: Fields) -> dict[str, Any]:
    given = block.object("input")
    arguments = {} if given is None else given.plain()
    block.ignore("caller")
    function = {"name": block.needed_text("name"), "arguments": arguments}
    return {"id": block.needed_text("id"), "type": "function", "function": function}


def _result(block: Fields) -> dict[str, Any]:
    call_id = block.needed_text("tool_use_id")
    text = chat_messages.text_of(block, "content") or ""
    if block.flag("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _tool(fields: Fields) -> tuple[Any, bool]:
    kind = fields.text("type", "custom")
    if kind != "custom":
        raise BadField(
            fields.name("type"), f"{fields.name('type')}: {short(kind)} is no tool of this server"
        )
    fields.ignore("cache_control")
    made = chat_messages.tool(fields, "input_schema")
    fields.end()
    return made


def _choice(fields: Fields, tools: list[tuple[Any, bool]]) -> tuple[Any, str, bool]:
    wanted = fields.object("tool_choice")
    if wanted is None:
        return chat_messages.check_tools(tools, "auto"), "auto", False
    kind = wanted.one_of("type", ("auto", "any", "tool", "none"))
    if kind is None:
        raise BadField("tool_choice.type", "tool_choice.type is missing")
    choice = {"any": "required", "tool": "named"}.get(kind, kind)
    checked = chat_messages.check_tools(tools, choice)
    if not checked and choice in ("required", "named"):
        raise BadField("tool_choice", f"tool_choice is {kind}, and there are no tools")
    if kind == "tool":
        checked = chat_messages.chosen(checked, wanted.needed_text("name"))
    one_call = wanted.flag("disable_parallel_tool_use")
    wanted.end()
    return checked, choice, one_call


class MessagesReply:
    """Write events, or one message. Implements `Reply`."""

    def __init__(self, model: str, n_prompt: int) -> None:
        self._model = model
        self._n_prompt = n_prompt
        self._id = new_id("msg_")
        self._answer = Gathered()
        self._open: str | None = None  # the kind of the block that is being written
        self._n_blocks = 0

    def begin(self) -> Iterable[Frame]:
        """Write the message without a content."""
        yield _frame("message_start", message={**self._message([]), "stop_reason": None})

    def take(self, index: int, event: Event) -> Iterable[Frame]:
        """Write what happened."""
        self._answer.add(event)
        if isinstance(event, Text):
            yield from self._block("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": event.text})
        elif isinstance(event, Reasoning):
            yield from self._block(
                "thinking", {"type": "thinking", "thinking": "", "signature": ""}
            )
            yield self._delta({"type": "thinking_delta", "thinking": event.text})
        elif isinstance(event, ToolBegin):
            yield from self._close()
            use = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            yield from self._block("tool_use", use)
        elif isinstance(event, ToolArguments):
            yield self._delta({"type": "input_json_delta", "partial_json": event.text})
        elif isinstance(event, Finish):
            yield from self._close()
            n_out = event.usage.completion_tokens
            yield _frame(
                "message_delta", delta=self._stopped(), usage={"output_tokens": n_out},
                remoe_edge=costs(event),
            )  # fmt: skip

    def end(self) -> Iterable[Frame]:
        """Write the end."""
        yield _frame("message_stop")

    def failed(self, status: int, body: dict[str, Any]) -> Iterable[Frame]:
        """Write an error."""
        yield "error", body

    def whole(self) -> dict[str, Any]:
        """Write the message."""
        answer = self._answer
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        for call in answer.calls:
            try:
                given = json.loads(call.arguments)
            except ValueError:  # cut short
                given = {}
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
        made = {**self._message(content), **self._stopped()}
        return made if answer.finish is None else {**made, "remoe_edge": costs(answer.finish)}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        finish = self._answer.finish
        n_out = 0 if finish is None else finish.usage.completion_tokens
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self._model,
            "content": content, "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": self._n_prompt, "output_tokens": n_out},
        }  # fmt: skip

    def _stopped(self) -> dict[str, Any]:
        finish = self._answer.finish
        reason = "stop" if finish is None else finish.reason
        named = {"length": "max_tokens", "tool_calls": "tool_use"}
        found = named.get(reason, "end_turn")
        sequence = None if finish is None else finish.stop_string
        if sequence is not None and found == "end_turn":
            found = "stop_sequence"
        return {"stop_reason": found, "stop_sequence": sequence}

    def _block(self, kind: str, block: dict[str, Any]) -> Iterable[Frame]:
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield _frame("content_block_start", index=self._n_blocks, content_block=block)

    def _close(self) -> Iterable[Frame]:
        if self._open is not None:
            yield _frame("content_block_stop", index=self._n_blocks)
            self._open, self._n_blocks = None, self._n_blocks + 1

    def _delta(self, delta: dict[str, Any]) -> Frame:
        return _frame("content_block_delta", index=self._n_blocks, delta=delta)


def _frame(kind: str, **values: Any) -> Frame:
    return kind, {"type": kind, **values}
