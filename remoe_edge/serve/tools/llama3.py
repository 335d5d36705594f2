"""Calls as Llama 3.1 and later write them: an answer that is `{"name": ..., "parameters": ...}` alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from remoe_edge.serve.events import ParserEvent, Text
from remoe_edge.serve.schemas import Rules
from remoe_edge.serve.tools.call_object import CallObject
from remoe_edge.serve.tools.format import Tool, ToolParser
from remoe_edge.serve.tools.hermes import call_schema

PYTHON_TAG = "<|python_tag|>"
_BLANK = " \t\r\n"
_BEGINS = re.compile(r'\{\s*"(name|type|function|parameters)"\s*:')
_MAY_BEGIN = re.compile(r'\{\s*("[a-z]{0,10}("\s*)?)?')


class Llama3:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "Llama 3"
    markers: tuple[str, ...] = (PYTHON_TAG,)
    splits_reasoning = False

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return "<|start_header_id|>" in template and '"parameters"' in template

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser."""
        return _Parser(spelled(PYTHON_TAG))

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(rules.add(call_schema(each, "parameters"), "tools") for each in tools)
        return f"( {calls} )" if one else f'( {calls} ) ( ";" " "? ( {calls} ) )*'


class _Parser:
    """States: start (a call may begin), call, text."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._state = "start"
        self._held = ""
        self._call: CallObject | None = None
        self._n_calls = 0

    def feed(self, text: str) -> list[ParserEvent]:
        self._held += text
        events: list[ParserEvent] = []
        while self._held:
            before = (self._state, self._held)
            events += getattr(self, f"_in_{self._state}")()
            if (self._state, self._held) == before:
                break
        return events

    def end(self) -> list[ParserEvent]:
        held, self._held = self._held, ""
        if self._call is not None and not self._call.begun:
            held = self._call.seen + held
        return [Text(held)] if held.strip() else []

    def _in_start(self) -> list[ParserEvent]:
        inner = self._held.lstrip(_BLANK + (";" if self._n_calls else ""))
        if inner.startswith(self._tag):
            self._held = inner[len(self._tag) :]
        elif _BEGINS.match(inner):
            self._held, self._state = inner, "call"
            self._call = CallObject(self._n_calls)
        elif inner and not (self._tag.startswith(inner) or _MAY_BEGIN.fullmatch(inner)):
            self._state = "text"
        return []

    def _in_call(self) -> list[ParserEvent]:
        assert self._call is not None
        events, self._held = self._call.feed(self._held)
        if self._call.bad:
            self._held, self._state, self._call = self._call.seen + self._held, "text", None
        elif self._call.done:
            self._n_calls, self._state, self._call = self._n_calls + 1, "start", None
        return events

    def _in_text(self) -> list[ParserEvent]:
        text, self._held = self._held, ""
        return [Text(text)]
