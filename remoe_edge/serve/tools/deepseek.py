"""Calls as DeepSeek's models write them, between their own markers.

calls-begin call-begin function call-sep NAME newline ```json {...} ``` call-end ... calls-end   (V3, R1)
calls-begin call-begin NAME call-sep {...} call-end ... calls-end                                (V3.1 on)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.serve.events import ParserEvent, ToolArguments, ToolBegin, ToolEnd
from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.call_object import JsonEnd
from remoe_edge.serve.tools.format import Tool, ToolParser, call_id
from remoe_edge.serve.tools.marked_calls import InStates, MarkedCalls


def _marker(words: str) -> str:
    """Spell a marker: between bars of full width, its words joined by low blocks."""
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


CALLS, CALLS_END = _marker("tool calls begin"), _marker("tool calls end")
CALL, CALL_SEP, CALL_END = (_marker(f"tool {each}") for each in ("call begin", "sep", "call end"))
_FENCE, _FENCE_END = "\n```json\n", "\n```"


class DeepSeek:
    """Know how these calls are written. Implements `ToolFormat`. fenced: as V3 and R1 do."""

    markers: tuple[str, ...] = (CALLS, CALLS_END, CALL, CALL_SEP, CALL_END)
    splits_reasoning = False

    def __init__(self, *, fenced: bool) -> None:
        self._fenced = fenced
        self.name = "DeepSeek V3 and R1" if fenced else "DeepSeek V3.1"

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return CALL in template and ("```json" in template) == self._fenced

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser; it reads both ways."""
        calls, calls_end, *inner = (spelled(each) for each in self.markers)
        # Some of these models leave the first marker out.
        openings = [(calls, ""), (inner[0], inner[0])]
        return MarkedCalls(
            openings, calls_end, lambda index: _Calls(index, calls_end, *inner), CALLS
        )  # fmt: skip

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of calls."""
        calls = " | ".join(self._call(rules, each) for each in tools)
        call = f"{literal(CALL)} ( {calls} ) {literal(CALL_END)}"
        between = '"\\n" ' if self._fenced else ""
        more = "" if one else f" ( {between}{call} )*"
        return f"{literal(CALLS)} {call}{more} {literal(CALLS_END)}"

    def _call(self, rules: Rules, tool: Tool) -> str:
        rule = rules.add(tool.parameters or {"type": "object"}, "tools")
        if self._fenced:
            head = literal(f"function{CALL_SEP}{tool.name}{_FENCE}")
            return f"{head} {rule} {literal(_FENCE_END)}"
        return f"{literal(tool.name + CALL_SEP)} {rule}"


class _Calls(InStates):
    """Read calls up to the last marker. Implements `Inside`. States: between, name, fence, arguments."""

    def __init__(self, index: int, calls_end: str, call: str, sep: str, call_end: str) -> None:
        super().__init__("between")
        self._index = index
        self._last, self._call, self._sep, self._call_end = calls_end, call, sep, call_end
        self._json = JsonEnd()

    def _in_between(self) -> list[ParserEvent]:
        self._held = self._held.lstrip()
        if self._held.startswith(self._call):
            self._held, self._state = self._held[len(self._call) :], "name"
        elif self._held.startswith(self._last):
            self.done, self.bad = self.begun, not self.begun
        elif not (self._call.startswith(self._held) or self._last.startswith(self._held)):
            self.bad = True
        return []

    def _in_name(self) -> list[ParserEvent]:
        at = self._held.find(self._sep)
        if at < 0:
            return []
        name, rest = self._held[:at].strip(), self._held[at + len(self._sep) :]
        if name == "function":  # the name follows, on a line of its own
            at = rest.find("\n")
            if at < 0:
                return []
            name, rest = rest[:at].strip(), rest[at:]
        if not name:
            self.bad = True
            return []
        self._held, self._state = rest, "fence"
        self.begun, self.n_calls = True, self.n_calls + 1
        return [ToolBegin(self._index + self.n_calls - 1, call_id(), name)]

    def _in_fence(self) -> list[ParserEvent]:
        """Leave out what stands before the arguments."""
        at = self._held.find("{")
        if at >= 0:
            self._held, self._state, self._json = self._held[at:], "arguments", JsonEnd()
        elif self._call_end in self._held:
            return [ToolArguments(self._index + self.n_calls - 1, "{}"), *self._end()]
        return []

    def _in_arguments(self) -> list[ParserEvent]:
        index = self._index + self.n_calls - 1
        events: list[ParserEvent] = []
        if not self._json.done:
            n_used = self._json.take(self._held)
            piece, self._held = self._held[:n_used], self._held[n_used:]
            events = [ToolArguments(index, piece)] if piece else []
        if self._json.done and self._call_end in self._held:
            events += self._end()
        return events

    def _end(self) -> list[ParserEvent]:
        _, _, self._held = self._held.partition(self._call_end)
        self._state = "between"
        return [ToolEnd(self._index + self.n_calls - 1)]
