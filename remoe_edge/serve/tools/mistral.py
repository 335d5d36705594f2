"""Calls as Mistral's models write them.

[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
[TOOL_CALLS]NAME[ARGS]{...}     (newer ones)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.engine.channels import partial
from remoe_edge.serve.events import ParserEvent, Text, ToolArguments, ToolBegin, ToolEnd
from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.call_object import CallObject, JsonEnd
from remoe_edge.serve.tools.format import Tool, ToolParser, call_id
from remoe_edge.serve.tools.hermes import call_schema

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_BLANK = " \t\r\n"


class Mistral:
    """Know how these calls are written. Implements `ToolFormat`.

    named: by name and [ARGS], as from Mistral Small 3.2 on.
    """

    markers: tuple[str, ...] = (CALLS, ARGS, CALL_ID)
    splits_reasoning = False

    def __init__(self, *, named: bool) -> None:
        self._named = named
        self.name = "Mistral, by name" if named else "Mistral"

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return CALLS in template and (ARGS in template) == self._named

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser."""
        return _Parser(*(spelled(each) for each in self.markers))

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        if self._named:
            arguments = [
                rules.add(each.parameters or {"type": "object"}, "tools") for each in tools
            ]
            calls = " | ".join(
                f"{literal(tool.name)} {literal(ARGS)} {rule}"
                for tool, rule in zip(tools, arguments, strict=True)
            )
            call = f"{literal(CALLS)} ( {calls} )"
            return call if one else f"{call} ( {call} )*"
        calls = " | ".join(rules.add(call_schema(each, "arguments"), "tools") for each in tools)
        more = "" if one else f' ( "," " "? ( {calls} ) )*'
        return f'{literal(CALLS)} "[" ( {calls} ){more} "]"'


class _Parser:
    """States: text, start (behind the marker), list, name, arguments."""

    def __init__(self, calls: str, args: str, call_id_marker: str) -> None:
        self._calls, self._args, self._id = calls, args, call_id_marker
        self._state = "text"
        self._held = ""
        self._name = ""
        self._call: CallObject | None = None
        self._json = JsonEnd()
        self._n_calls = 0

    def feed(self, text: str) -> list[ParserEvent]:
        self._held += text
        events: list[ParserEvent] = []
        while True:
            before = (self._state, self._held)
            events += getattr(self, f"_in_{self._state}")()
            if (self._state, self._held) == before:
                return events

    def end(self) -> list[ParserEvent]:
        held, self._held = self._held, ""
        if self._state in ("start", "name"):
            return [Text(CALLS + held)]
        if self._state == "list" and self._call is not None and not self._call.begun:
            return [Text(self._call.seen + held)]
        return [Text(held)] if self._state == "text" and held else []

    def _in_text(self) -> list[ParserEvent]:
        at = self._held.find(self._calls)
        ready = at if at >= 0 else len(self._held) - partial(self._held, [self._calls])
        text, self._held = self._held[:ready], self._held[ready:]
        if at >= 0:
            self._held, self._state = self._held[len(self._calls) :], "start"
            text = text.rstrip()
        return [Text(text)] if text else []

    def _in_start(self) -> list[ParserEvent]:
        self._held = self._held.lstrip(_BLANK)
        if self._held[:1] == "[" and not self._args.startswith(self._held[: len(self._args)]):
            self._held, self._state = self._held[1:], "list"
        elif self._held and self._held[:1] != "[":
            self._state = "name"
        elif self._held == "[":
            pass  # a list, or a marker: the next character tells
        return []

    def _in_list(self) -> list[ParserEvent]:
        if self._call is None:
            self._held = self._held.lstrip(_BLANK + ",")
            if self._held[:1] == "]":
                self._held, self._state = self._held[1:], "text"
                return []
            if not self._held:
                return []
            self._call = CallObject(self._n_calls)
        events, self._held = self._call.feed(self._held)
        if self._call.bad:
            seen = self._call.seen
            self._call, self._state = None, "text"
            return [*events, Text(seen)]
        if self._call.done:
            self._call, self._n_calls = None, self._n_calls + 1
        return events

    def _in_name(self) -> list[ParserEvent]:
        ends = [at for each in (self._args, self._id, "{") if (at := self._held.find(each)) >= 0]
        if not ends:
            return []
        self._name = self._held[: min(ends)].strip()
        self._held = self._held[min(ends) :]
        at = self._held.find("{")
        if at < 0:
            self._held = self._name + self._held  # the arguments are still to come
            return []
        self._held, self._state, self._json = self._held[at:], "arguments", JsonEnd()
        if not self._name:
            self._state = "text"
            return [Text(CALLS)]
        return [ToolBegin(self._n_calls, call_id(), self._name)]

    def _in_arguments(self) -> list[ParserEvent]:
        n_used = self._json.take(self._held)
        piece, self._held = self._held[:n_used], self._held[n_used:]
        events: list[ParserEvent] = [ToolArguments(self._n_calls, piece)] if piece else []
        if self._json.done:
            events.append(ToolEnd(self._n_calls))
            self._n_calls, self._state = self._n_calls + 1, "text"
        return events
