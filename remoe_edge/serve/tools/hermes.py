"""Calls as Hermes, Qwen2.5 and Qwen3 write them.

<tool_call>
{"name": ..., "arguments": {...}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.engine.channels import partial
from remoe_edge.serve.events import ParserEvent, Text
from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.call_object import CallObject
from remoe_edge.serve.tools.format import Tool, ToolParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_OTHERS = ("<function=", "<arg_key>")  # the same marker around another way of writing


class Hermes:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "Hermes"
    markers: tuple[str, ...] = (OPEN, CLOSE)
    splits_reasoning = False

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return OPEN in template and not any(each in template for each in _OTHERS)

    def parser(self, spelled: Callable[[str], str]) -> ToolParser:
        """Make a parser."""
        return _Parser(spelled(OPEN), spelled(CLOSE))

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(rules.add(call_schema(each, "arguments"), "tools") for each in tools)
        call = f'{literal(OPEN)} "\\n" ( {calls} ) "\\n"? {literal(CLOSE)}'
        return call if one else f'{call} ( "\\n" {call} )*'


def call_schema(tool: Tool, arguments: str) -> dict[str, object]:
    """Make the schema of a call as one JSON object, with the definitions of its arguments on top."""
    parameters = dict(tool.parameters)
    shared: dict[str, object] = {
        key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters
    }
    properties = {"name": {"const": tool.name}, arguments: parameters or {"type": "object"}}
    return {
        "type": "object", "properties": properties, "required": ["name", arguments], **shared,
    }  # fmt: skip


class _Parser:
    def __init__(self, opening: str, closing: str) -> None:
        self._open, self._close = opening, closing
        self._held = ""
        self._call: CallObject | None = None
        self._n_calls = 0
        self._said = False  # there was text before, which blank text belongs to
        self._blank = ""

    def feed(self, text: str) -> list[ParserEvent]:
        self._held += text
        events: list[ParserEvent] = []
        while True:
            found, again = self._outside() if self._call is None else self._inside(self._call)
            events += found
            if not again:
                return events

    def end(self) -> list[ParserEvent]:
        held, self._held = self._held, ""
        if self._call is None:
            return self._text(held)
        if self._call.begun:
            return []  # cut short: its arguments end where they end
        return self._text(self._marked(self._call.seen) + held)

    def _outside(self) -> tuple[list[ParserEvent], bool]:
        at = self._held.find(self._open)
        if at >= 0:
            before, self._held = self._held[:at], self._held[at + len(self._open) :]
            self._call = CallObject(self._n_calls)
            return self._text(before), True
        ready = len(self._held) - partial(self._held, [self._open])
        before, self._held = self._held[:ready], self._held[ready:]
        return self._text(before), False

    def _inside(self, call: CallObject) -> tuple[list[ParserEvent], bool]:
        events: list[ParserEvent] = []
        if not (call.done or call.bad):
            events, self._held = call.feed(self._held)
        if call.begun and (call.done or call.bad):
            at = self._held.find(self._close)
            if at < 0:
                return events, False
            self._held = self._held[at + len(self._close) :]
            self._call, self._n_calls, self._blank = None, self._n_calls + 1, ""
            return events, True
        if call.bad:
            self._call = None
            return self._text(self._marked(call.seen)), True
        return events, False

    def _marked(self, inside: str) -> str:
        return OPEN + inside

    def _text(self, text: str) -> list[ParserEvent]:
        """Give out text, but for blanks at the end, which only part it from a call."""
        text = self._blank + text
        ready = text.rstrip() if self._n_calls or self._call is not None else text.rstrip("\n")
        self._blank = text[len(ready) :]
        return [Text(ready)] if ready else []
