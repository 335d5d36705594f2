"""Calls as Hermes, Qwen2.5 and Qwen3 write them.

<tool_call>
{"name": ..., "arguments": {...}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.call_object import CallObject
from remoe_edge.serve.tools.format import Tool, ToolParser
from remoe_edge.serve.tools.marked_calls import MarkedCalls

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

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser."""
        return MarkedCalls([(spelled(OPEN), "")], spelled(CLOSE), CallObject, OPEN)

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
