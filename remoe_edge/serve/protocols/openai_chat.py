"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from remoe_edge.serve.asks import MOST_ANSWERS, Chat
from remoe_edge.serve.events import (
    Event,
    Finish,
    Reasoning,
    Text,
    TokenChoice,
    TokenText,
    ToolArguments,
    ToolBegin,
)
from remoe_edge.serve.fields import BadField, Fields
from remoe_edge.serve.protocols import chat_messages
from remoe_edge.serve.protocols.reply import Frame, Gathered, costs, new_id, now, usage
from remoe_edge.serve.protocols.sampling import max_tokens, sampling, top_logprobs

_MOST_TOP = 20
_CHANGES_NOTHING = (
    "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip


@dataclass(frozen=True)
class ChatRequest:
    """Hold what was asked for. include_usage: a last chunk tells how many tokens there were."""

    chat: Chat
    stream: bool
    include_usage: bool
    logprobs: bool


def read(fields: Fields) -> ChatRequest:
    """Read a request. Raises BadField."""
    fields.text("model")
    found = chat_messages.messages(fields)
    settings = sampling(fields)
    settings["max_tokens"] = max_tokens(fields, "max_completion_tokens", "max_tokens")
    logprobs = fields.flag("logprobs")
    top = top_logprobs(fields, "top_logprobs", _MOST_TOP)
    if top and not logprobs:
        raise BadField("top_logprobs", "top_logprobs needs logprobs: true")
    if logprobs:
        settings["logprobs"] = top or 0
    tools = []
    for each in fields.objects("tools"):
        if each.needed_text("type") != "function":
            raise BadField(
                each.name("type"), f"{each.name('type')}: this server knows functions alone"
            )
        function = each.object("function")
        if function is None:
            raise BadField(each.name("function"), f"{each.name('function')} is missing")
        tools.append(chat_messages.tool(function))
        function.end()
        each.end()
    allowed, choice = chat_messages.tools_and_choice(fields, tools, "function")
    several = fields.flag("parallel_tool_calls", True)
    schema = response_schema(fields)
    stream, include_usage = read_stream(fields)
    variables = read_variables(fields)
    n = fields.whole("n", 1, MOST_ANSWERS) or 1
    refuse_others(fields)
    fields.end()
    chat = Chat(found, settings, allowed, choice, not several, schema, variables=variables, n=n)
    return ChatRequest(chat, stream, include_usage, logprobs)


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Read whether the answer is to be streamed, and its usage told."""
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise BadField("stream_options", "stream_options needs stream: true")
    found = options.flag("include_usage")
    options.ignore("include_obfuscation")
    options.end()
    return stream, found


def read_variables(fields: Fields) -> dict[str, Any]:
    """Read what the model's template is given."""
    given = fields.object("chat_template_kwargs")
    found = {} if given is None else given.plain()
    effort = fields.text("reasoning_effort")
    if effort is not None:
        found["reasoning_effort"] = effort
    for name in ("messages", "tools", "add_generation_prompt"):
        if name in found:
            raise BadField(
                "chat_template_kwargs", f"chat_template_kwargs: {name} has a field of its own"
            )
    return found


def response_schema(fields: Fields) -> dict[str, Any] | None:
    """Read what the answer is held to: {} any JSON object, None nothing."""
    form = fields.object("response_format")
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise BadField("response_format.type", "response_format.type is missing")
    schema: dict[str, Any] | None = {} if kind == "json_object" else None
    if kind == "json_schema":
        outer = form.object("json_schema")
        if outer is None:
            raise BadField("response_format.json_schema", "response_format.json_schema is missing")
        outer.flag("strict")  # it is kept either way
        outer.text("name")
        outer.text("description")
        inner = outer.object("schema")
        outer.end()
        schema = {} if inner is None else inner.plain()
    form.end()
    return schema


def refuse_others(fields: Fields) -> None:
    """Refuse by name what this server does not do."""
    fields.ignore(*_CHANGES_NOTHING)
    fields.refuse("store", "nothing is stored here", unless=(False,))
    fields.refuse("functions", "use tools")
    fields.refuse("function_call", "use tool_choice")
    fields.refuse("modalities", "this server writes texts alone", unless=(["text"],))
    fields.refuse("audio", "this server writes texts alone")
    fields.refuse("prediction", "llama.cpp's sampler takes none")
    fields.refuse("web_search_options", "this server searches nothing")
    fields.refuse("verbosity", "this model has no such setting", unless=("medium",))


class ChatReply:
    """Write chunks, or one completion. Implements `Reply`."""

    def __init__(self, asked: ChatRequest, model: str) -> None:
        self._asked = asked
        self._head = {"id": new_id("chatcmpl-"), "created": now(), "model": model}
        self._answers = [Gathered() for _ in range(asked.chat.n)]

    def begin(self) -> Iterable[Frame]:
        """Write the roles."""
        for index in range(len(self._answers)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def take(self, index: int, event: Event) -> Iterable[Frame]:
        """Write what happened."""
        answer = self._answers[index]
        answer.add(event)
        if isinstance(event, Text):
            yield self._chunk(index, {"content": event.text}, tokens=event.tokens)
        elif isinstance(event, Reasoning):
            yield self._chunk(index, {"reasoning_content": event.text})
        elif isinstance(event, ToolBegin):
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.index, "id": event.id, "type": "function", "function": function}
            yield self._chunk(index, {"tool_calls": [call]})
        elif isinstance(event, ToolArguments):
            call = {"index": event.index, "function": {"arguments": event.text}}
            yield self._chunk(index, {"tool_calls": [call]})
        elif isinstance(event, Finish):
            _, chunk = self._chunk(index, {}, reason=event.reason, tokens=event.rest)
            assert isinstance(chunk, dict)
            yield None, {**chunk, "remoe_edge": costs(event)}

    def end(self) -> Iterable[Frame]:
        """Write the usage, where it is wanted, and the end."""
        if self._asked.include_usage:
            yield None, {**self._of("chat.completion.chunk", []), "usage": usage_of(self._answers)}
        yield None, "[DONE]"

    def failed(self, status: int, body: dict[str, Any]) -> Iterable[Frame]:
        """Write an error."""
        yield None, body

    def whole(self) -> dict[str, Any]:
        """Write the completion."""
        choices = [self._choice(index, each) for index, each in enumerate(self._answers)]
        made = {**self._of("chat.completion", choices), "usage": usage_of(self._answers)}
        finish = self._answers[-1].finish
        return made if finish is None else {**made, "remoe_edge": costs(finish)}

    def _choice(self, index: int, answer: Gathered) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.name, "arguments": c.arguments},
                }
                for c in answer.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": list(map(logprob, answer.tokens)), "refusal": None}
            if self._asked.logprobs else None,
            "finish_reason": finish_reason(answer),
        }  # fmt: skip

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        tokens: Sequence[TokenChoice] = (),
    ) -> Frame:
        logprobs = {"content": list(map(logprob, tokens)), "refusal": None} if tokens else None
        reason = "stop" if reason == "cancelled" else reason
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        made = self._of("chat.completion.chunk", [choice])
        return None, {**made, "usage": None} if self._asked.include_usage else made

    def _of(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices}


def finish_reason(answer: Gathered) -> str:
    """Say why an answer ended, as OpenAI knows it."""
    reason = "stop" if answer.finish is None else answer.finish.reason
    return "stop" if reason == "cancelled" else reason


def usage_of(answers: Sequence[Gathered]) -> dict[str, Any]:
    """Count tokens as OpenAI does."""
    n_in, n_out = usage(answers)
    return {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}


def logprob(token: TokenChoice) -> dict[str, Any]:
    """Write a token's log probability, and those of the likeliest in its place."""
    return {**_logprob(token), "top_logprobs": [_logprob(each) for each in token.top]}


def _logprob(token: TokenText) -> dict[str, Any]:
    text = token.data.decode("utf-8", "replace")
    # JSON has no infinity, which a banned token's is.
    return {"token": text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.data)}
