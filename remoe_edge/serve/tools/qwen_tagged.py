"""Calls as Qwen3-Coder, Qwen3.5 and later write them.

<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.format import Tool, ToolParser
from remoe_edge.serve.tools.hermes import CLOSE, OPEN
from remoe_edge.serve.tools.marked_calls import MarkedCalls
from remoe_edge.serve.tools.plain_values import arguments, one_after_another, value
from remoe_edge.serve.tools.tagged_call import TaggedCall, Tags

_FUNCTION = "<function="
_TAGS = Tags(
    _FUNCTION, ">", "<parameter=", ">", "", "</parameter>", "</function>",
    keeps_end=False, trims=True,
)  # fmt: skip


class QwenTagged:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "Qwen3-Coder"
    markers: tuple[str, ...] = (OPEN, CLOSE)
    splits_reasoning = False

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return _FUNCTION in template and "<parameter=" in template

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser. These models leave out the opening marker at times."""
        openings = [(spelled(OPEN), ""), (_FUNCTION, _FUNCTION)]
        return MarkedCalls(
            openings, spelled(CLOSE), lambda index: TaggedCall(index, _TAGS, tools), OPEN
        )  # fmt: skip

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(_call(rules, each) for each in tools)
        call = f'{literal(OPEN)} "\\n" ( {calls} ) "\\n" {literal(CLOSE)}'
        return call if one else f'{call} ( "\\n" {call} )*'


def _call(rules: Rules, tool: Tool) -> str:
    parts = [
        (
            f"{literal(f'<parameter={name}>' + chr(10))} {value(rules, tool, name, schema)} "
            + literal("\n</parameter>\n"),
            is_needed,
        )
        for name, schema, is_needed in arguments(tool)
    ]
    begin, end = literal(f"{_FUNCTION}{tool.name}>\n"), literal("</function>")
    return f"{begin} {one_after_another(parts)} {end}"
