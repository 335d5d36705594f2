"""Calls as GLM-4.5 and later write them.

<tool_call>NAME
<arg_key>KEY</arg_key>
<arg_value>VALUE</arg_value>
</tool_call>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.format import Tool, ToolParser
from remoe_edge.serve.tools.hermes import CLOSE, OPEN
from remoe_edge.serve.tools.marked_calls import MarkedCalls
from remoe_edge.serve.tools.plain_values import arguments, one_after_another
from remoe_edge.serve.tools.plain_values import value as plain_value
from remoe_edge.serve.tools.tagged_call import TaggedCall, Tags

_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class Glm:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "GLM-4.5"
    markers: tuple[str, ...] = (OPEN, CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END)
    splits_reasoning = False

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return _KEY in template and OPEN in template

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser."""
        opening, end, key, key_end, value, value_end = (spelled(each) for each in self.markers)
        tags = Tags(
            "", "\n", key, key_end, value, value_end, end, keeps_end=True, trims=False
        )  # fmt: skip
        return MarkedCalls(
            [(opening, "")], end, lambda index: TaggedCall(index, tags, tools), OPEN
        )  # fmt: skip

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(_call(rules, each) for each in tools)
        call = f"{literal(OPEN)} ( {calls} ) {literal(CLOSE)}"
        return call if one else f'{call} ( "\\n" {call} )*'


def _call(rules: Rules, tool: Tool) -> str:
    parts = [
        (
            f"{literal(f'{_KEY}{name}{_KEY_END}' + chr(10) + _VALUE)} "
            f"{plain_value(rules, tool, name, schema)} {literal(_VALUE_END + chr(10))}",
            is_needed,
        )
        for name, schema, is_needed in arguments(tool)
    ]
    return f"{literal(tool.name + chr(10))} {one_after_another(parts)}"
