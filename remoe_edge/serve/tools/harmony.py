"""Calls as gpt-oss writes them: a message on the channel `commentary` with a function as its recipient.

<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remoe_edge.engine.channels import CHANNEL, CONSTRAIN, HARMONY, MESSAGE, START, partial
from remoe_edge.serve.events import (
    ParserEvent,
    Reasoning,
    Text,
    ToolArguments,
    ToolBegin,
    ToolEnd,
)
from remoe_edge.serve.schemas import Rules, literal
from remoe_edge.serve.tools.format import Tool, ToolParser, call_id

_RECIPIENT = "functions."


class Harmony:
    """Know how these calls are written. Implements `ToolFormat`."""

    name = "harmony"
    markers: tuple[str, ...] = HARMONY
    splits_reasoning = True

    def matches(self, template: str) -> bool:
        """Say whether a template has them."""
        return CHANNEL in template and MESSAGE in template and _RECIPIENT in template

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser."""
        return _Parser({spelled(each): each for each in HARMONY})

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write the root of a call; the model is asked again for each further one."""
        calls = [
            f"{literal(f'{CHANNEL}commentary to={_RECIPIENT}{tool.name} {CONSTRAIN}json{MESSAGE}')} "
            + rules.add(tool.parameters or {"type": "object"}, "tools")
            for tool in tools
        ]
        return f"( {' | '.join(calls)} )"


class _Parser:
    """Read messages: a header of role, channel and recipient, then a text."""

    def __init__(self, markers: dict[str, str]) -> None:
        self._markers = markers
        self._held = ""
        self._header: str | None = None  # what has been read of a header; None in a text
        self._kind = "text"  # of the message: text, reasoning, call
        self._blank = ""
        self._n_calls = 0
        self._reasoned = False

    def feed(self, text: str) -> list[ParserEvent]:
        self._held += text
        events: list[ParserEvent] = []
        while True:
            found = [(at, each) for each in self._markers if (at := self._held.find(each)) >= 0]
            if not found:
                break
            at, marker = min(found)
            events += self._take(self._held[:at])
            events += self._mark(self._markers[marker])
            self._held = self._held[at + len(marker) :]
        ready = len(self._held) - partial(self._held, list(self._markers))
        events += self._take(self._held[:ready])
        self._held = self._held[ready:]
        return events

    def end(self) -> list[ParserEvent]:
        held, self._held = self._held, ""
        events = self._take(held)
        # `<|call|>` ends the answer, so nothing else ends a call.
        return [*events, *self._end_message()]

    def _take(self, text: str) -> list[ParserEvent]:
        if not text:
            return []
        if self._header is not None:
            self._header += text
            return []
        if self._kind == "call":
            return [ToolArguments(self._n_calls, text)]
        if self._kind == "text":
            return [Text(text)]
        text = self._blank + text
        ready = text.rstrip()
        self._blank = text[len(ready) :]
        if not ready:
            return []
        self._reasoned = True
        return [Reasoning(ready)]

    def _mark(self, marker: str) -> list[ParserEvent]:
        if marker in (START, CHANNEL):
            ended = self._end_message() if self._header is None else []
            self._header = "" if marker == START else (self._header or "") + " channel="
            return ended
        if marker == CONSTRAIN and self._header is not None:
            self._header += " "
            return []
        if marker == MESSAGE:
            header, self._header = self._header or "", None
            return self._begin_message(header)
        return self._end_message() if self._header is None else []

    def _begin_message(self, header: str) -> list[ParserEvent]:
        words = header.split()
        channel = next((each[8:] for each in words if each.startswith("channel=")), "final")
        to = next((each[3:] for each in words if each.startswith("to=")), "")
        if to.startswith(_RECIPIENT):
            self._kind = "call"
            return [ToolBegin(self._n_calls, call_id(), to.removeprefix(_RECIPIENT))]
        # What is said on `commentary` to nobody is for the user: why a tool is called.
        self._kind = "reasoning" if channel == "analysis" or to else "text"
        self._blank = "\n\n" if self._reasoned else ""
        return []

    def _end_message(self) -> list[ParserEvent]:
        was, self._kind = self._kind, "text"
        if was != "call":
            return []
        self._n_calls += 1
        return [ToolEnd(self._n_calls - 1)]
