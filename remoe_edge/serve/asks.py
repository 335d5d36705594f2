"""Make of what a client wants what the engine is asked for: the prompt's tokens, and how to answer it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoe_edge.engine import chat_template
from remoe_edge.engine.channels import MESSAGE, PAIRS
from remoe_edge.engine.continued import is_begun
from remoe_edge.engine.request import check_grammar
from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.errors import ModelError, UnsupportedError
from remoe_edge.native import llama_cpp
from remoe_edge.serve.conversations import Ask
from remoe_edge.serve.fields import BadField
from remoe_edge.serve.grammars import root_of
from remoe_edge.serve.schemas import Rules
from remoe_edge.serve.tools.format import Tool, ToolFormat, tool_form
from remoe_edge.serve.tools.formats import of_template
from remoe_edge.serve.tools.lfm2 import Lfm2

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine

MOST_ANSWERS = 128  # to one request
LFM2 = Lfm2()
_SEED_END = 2**32 - 1


@dataclass(frozen=True)
class Chat:
    """Hold what every protocol for chats asks for.

    messages: as chat templates have them. choice: "none", "auto", "required" or "named", which leaves
    one tool. schema: what the answer is held to; {} any JSON object, None nothing. variables: of the
    template. prompt_field: names the messages in errors.
    """

    messages: Sequence[Mapping[str, Any]]
    sampling: dict[str, Any]
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    one_call: bool = False
    schema: Mapping[str, Any] | None = None
    schema_field: str = "response_format"
    variables: dict[str, Any] = field(default_factory=dict)
    prompt_field: str = "messages"
    n: int = 1


def chat_asks(engine: Engine, chat: Chat) -> list[Ask]:
    """Render a chat and make its asks. Raises BadField, and as `Engine.render` does."""
    called = chat.tools if chat.choice != "none" else ()
    sources = chat_template.sources(engine.llama)
    source = _source(sources, bool(called))
    format_ = of_template(source) if called else None
    variables = _variables(chat, source)
    tools = [each.for_template() for each in called] or None
    if (
        len(chat.messages) > engine.n_ctx
    ):  # each is a token at least; a template takes long over so many
        raise BadField(
            chat.prompt_field,
            f"{len(chat.messages)} messages do not fit the context of {engine.n_ctx} tokens: shorten "
            f"{chat.prompt_field}",
        )
    forced = format_ is not None and chat.choice in ("required", "named")
    _check_continued(chat, forced)
    prompt, stop, bos = _rendered(engine, _for(source, chat.messages), tools, variables)
    tokens = engine.tokenize(prompt, special=True, bos=bos)
    check_room(engine, len(tokens), chat.prompt_field)
    form = prompt.form
    parser = None
    if format_ is not None:
        words = Tokenizer(engine.llama)
        made = tool_form(prompt.form, format_, words, strict=not forced)
        form, parser = made, lambda: format_.parser(made.spelled, called)
    sampling = dict(chat.sampling)
    sampling["stop"] = [*sampling.get("stop", ()), *stop]
    grammar = _grammar(engine, chat, prompt.form, called, format_ if forced else None)
    if grammar is not None:
        sampling["grammar"] = grammar
    one_call = chat.one_call or (forced and chat.choice == "named")
    goes_on = any(each.get("role") == "assistant" for each in chat.messages)
    return [
        Ask(tokens, each, form, parser, one_call and format_ is not None, goes_on)
        for each in seeded(sampling, chat.n)
    ]


def _check_continued(chat: Chat, forced: bool) -> None:
    """Refuse a form that an answer has from its beginning, where the client has written that."""
    if not is_begun(chat.messages):
        return
    field = chat.schema_field if chat.schema is not None else "tool_choice" if forced else None
    if field is not None:
        raise BadField(
            field,
            f"{field}: the answer goes on from the last message, which is the assistant's, and this form "
            f"holds whole answers: end {chat.prompt_field} with a message of the user",
        )


def _rendered(
    engine: Engine,
    messages: list[Mapping[str, Any]],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any],
) -> tuple[Any, list[str], bool]:
    """Render messages. Most templates want a call's arguments as an object, some as JSON's text."""
    try:
        found = engine.render(messages, tools=tools, variables=variables)
    except ModelError:
        if not any(each.get("tool_calls") for each in messages):
            raise
        messages = [_with_texts(each) for each in messages]
        found = engine.render(messages, tools=tools, variables=variables)
    return found


def _with_texts(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message.get("tool_calls", ())
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


def text_ask(
    engine: Engine, tokens: list[int], sampling: dict[str, Any], n: int, param: str
) -> list[Ask]:
    """Make the asks of a text that is to be continued."""
    if not tokens:
        raise BadField(param, f"{param} is empty")
    check_room(engine, len(tokens), param)
    return [Ask(tokens, each) for each in seeded(sampling, n)]


def seeded(sampling: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Give each of several answers a seed of its own."""
    seed = sampling.get("seed")
    if seed is None:
        return [sampling] * n
    return [{**sampling, "seed": (seed + i) % _SEED_END} for i in range(n)]


def check_room(engine: Engine, n_tokens: int, param: str) -> None:
    """Raise BadField where a prompt leaves no room for an answer."""
    if n_tokens + 1 > engine.n_ctx:
        raise BadField(
            param,
            f"{n_tokens} tokens and an answer do not fit the context of {engine.n_ctx}: shorten "
            f"{param}, or start the server with a larger --ctx",
        )


def _source(sources: Mapping[str, bytes], with_tools: bool) -> str:
    """Give the template that the engine takes."""
    if with_tools and chat_template.TOOL_USE in sources:
        found = sources[chat_template.TOOL_USE]
    else:
        found = sources.get(chat_template.DEFAULT) or next(iter(sources.values()), b"")
    return found.decode("utf-8", "replace")


def _variables(chat: Chat, source: str) -> dict[str, Any]:
    """Give what the template is to be told. Raises BadField for what it has no place for."""
    found = dict(chat.variables)
    reasons = MESSAGE in source or any(opening in source for opening, _, _ in PAIRS)
    if found.get("enable_thinking") is False and not reasons:
        del found["enable_thinking"]  # a model that does not reason need not be told so
    for name in found:
        if name not in source:
            raise BadField(name, f"{name}: this model's chat template has no place for it")
    return found


def _for(source: str, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Fit messages to a template: a developer is its system where it knows none, and reasoning goes
    back only where it has a place for it."""
    made: list[Mapping[str, Any]] = []
    for message in messages:
        each = dict(message)
        if "tool_calls" in each and "tool_calls" not in source:
            # Left to the template, the calls would be gone in silence.
            if not LFM2.matches(source):
                raise UnsupportedError(
                    "tool_calls: this model's chat template has no place for calls of earlier turns"
                )
            content = each.get("content") or ""
            each["content"] = content + LFM2.written(each.pop("tool_calls"))
        if each["role"] == "developer" and "developer" not in source:
            each["role"] = "system"
        reasoning = each.pop("reasoning_content", None)
        for name in ("reasoning_content", "thinking"):
            if reasoning and name in source:
                each[name] = reasoning
                break
        made.append(each)
    return made


def _grammar(
    engine: Engine,
    chat: Chat,
    form: Any,
    tools: Sequence[Tool],
    forced: ToolFormat | None,
) -> Any:
    """Make the grammar that holds an answer to a call or to a schema; None where it is free."""
    if chat.schema is None and forced is None:
        return None
    rules = Rules()
    if forced is not None:
        if chat.schema is not None:
            raise BadField(
                chat.schema_field,
                f"{chat.schema_field}: an answer that has to call a tool has no other form",
            )
        one = chat.one_call or chat.choice == "named"
        body = forced.grammar(rules, tools, one=one)
        text = rules.text(root_of(form, body, is_call=True))
    else:
        if tools:
            raise BadField(
                chat.schema_field,
                f"{chat.schema_field} and tools: llama.cpp's grammar takes one of them",
            )
        rule = rules.add(chat.schema, chat.schema_field) if chat.schema else rules.anything()
        text = rules.text(root_of(form, rule, is_call=False))
    grammar = llama_cpp.LlamaGrammar.from_string(text, verbose=False)
    try:
        check_grammar(grammar, engine.llama._model.vocab)
    except Exception:
        raise UnsupportedError(
            f"{'tools' if forced else chat.schema_field}: llama.cpp cannot follow this schema"
        ) from None
    return grammar
