"""Calls as Granite 3 writes them: `<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`.

Granite 4 writes them as Hermes does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.call_list import CallList
from remoe_edge.serve.tools.format import Tool, ToolParser
from remoe_edge.serve.tools.hermes import OPEN as HERMES_OPEN
from remoe_edge.serve.tools.hermes import call_schema
from remoe_edge.serve.tools.marked_calls import MarkedCalls

OPEN = "<|tool_call|>"


class Granite:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "Granite"
    markers: tuple[str, ...] = (OPEN, HERMES_OPEN)
    splits_reasoning = False

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return OPEN in template

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser. Some of these models write the marker without its bars."""
        return MarkedCalls([(spelled(each), "") for each in self.markers], None, CallList, OPEN)

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(rules.add(call_schema(each, "arguments"), "tools") for each in tools)
        more = "" if one else f' ( "," " "? ( {calls} ) )*'
        return f'{literal(OPEN)} "[" ( {calls} ){more} "]"'
