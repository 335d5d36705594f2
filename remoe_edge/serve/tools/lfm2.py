"""Calls as LFM2 writes them, as Python has them.

<|tool_call_start|>[NAME(KEY="VALUE", KEY=3), NAME()]<|tool_call_end|>
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remoe_edge.serve.events import ParserEvent, ToolArguments, ToolBegin, ToolEnd
from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.format import Tool, ToolParser, call_id
from remoe_edge.serve.tools.marked_calls import InStates, MarkedCalls
from remoe_edge.serve.tools.plain_values import arguments, one_after_another
from remoe_edge.serve.tools.python_value import PythonValue

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_LIST = "<|tool_list_start|>"  # its templates tell of tools, and leave it to the model how it calls them


class Lfm2:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "LFM2"
    markers: tuple[str, ...] = (OPEN, CLOSE)
    splits_reasoning = False

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return OPEN in template or _LIST in template

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser."""
        return MarkedCalls([(spelled(OPEN), "")], spelled(CLOSE), _Calls, OPEN)

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(_call(rules, each) for each in tools)
        more = "" if one else f' ( ", " ( {calls} ) )*'
        return f'{literal(OPEN)} "[" ( {calls} ){more} "]" {literal(CLOSE)}'

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Write calls of earlier turns, which these templates have no place for."""
        made = []
        for call in calls:
            given = call["function"]["arguments"]
            pairs = ", ".join(f"{key}={_python(each)}" for key, each in given.items())
            made.append(f"{call['function']['name']}({pairs})")
        return f"{OPEN}[{', '.join(made)}]{CLOSE}"


def _python(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _call(rules: Rules, tool: Tool) -> str:
    parts = [
        (f"{literal(name + '=')} {rules.add(schema, 'tools')}", is_needed)
        for name, schema, is_needed in arguments(tool)
    ]
    return f'{literal(tool.name + "(")} {one_after_another(parts, literal(", "))} ")"'


class _Calls(InStates):
    """Read calls in brackets. Implements `Inside`. States: open, name, key, value, behind."""

    def __init__(self, index: int) -> None:
        super().__init__("open")
        self._index = index
        self._n_arguments = 0
        self._value = PythonValue()

    def _in_open(self) -> list[ParserEvent]:
        self._held = self._held.lstrip()
        if self._held:
            self.bad = self._held[0] != "["
            self._held, self._state = self._held[1:], "name"
        return []

    def _in_name(self) -> list[ParserEvent]:
        self._held = self._held.lstrip(" \t\r\n,")
        if self._held[:1] == "]":
            self._held = self._held[1:]
            self.done, self.bad = self.begun, not self.begun
            return []
        at = self._held.find("(")
        name = self._held if at < 0 else self._held[:at].strip()
        if not all(each.isalnum() or each in "_-.:" for each in name.strip()) or name == "":
            self.bad = bool(self._held)
            return []
        if at < 0:
            return []
        self._held, self._state = self._held[at + 1 :], "key"
        self.begun, self.n_calls, self._n_arguments = True, self.n_calls + 1, 0
        return [ToolBegin(self._index + self.n_calls - 1, call_id(), name)]

    def _in_key(self) -> list[ParserEvent]:
        self._held = self._held.lstrip(" \t\r\n,")
        if self._held[:1] == ")":
            self._held, self._state = self._held[1:], "name"
            end = "}" if self._n_arguments else "{}"
            return [*self._argue(end), ToolEnd(self._index + self.n_calls - 1)]
        at = self._held.find("=")
        if at < 0:
            return []
        key, self._held = self._held[:at].strip(), self._held[at + 1 :]
        before = ", " if self._n_arguments else "{"
        self._n_arguments += 1
        self._state, self._value = "value", PythonValue()
        return self._argue(f"{before}{json.dumps(key, ensure_ascii=False)}: ")

    def _in_value(self) -> list[ParserEvent]:
        made, n_used = self._value.take(self._held)
        self._held = self._held[n_used:]
        if self._value.done:
            self._state = "key"
        return self._argue(made)

    def _argue(self, text: str) -> list[ParserEvent]:
        return [ToolArguments(self._index + self.n_calls - 1, text)] if text else []
