"""Read `{"name": ..., "arguments": {...}}` as it comes, and give out the arguments piece by piece."""

from __future__ import annotations

import json

from remoe_edge.serve.events import ParserEvent, ToolArguments, ToolBegin, ToolEnd
from remoe_edge.serve.tools.format import call_id

_BLANK = " \t\r\n"
ARGUMENTS = ("arguments", "parameters")


class JsonEnd:
    """Find the end of one JSON value in text that comes in pieces. done: it has been found."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_text = self._escaped = self._bare = False

    def take(self, text: str) -> int:
        """Take in text; return how many of its characters belong to the value."""
        for at, char in enumerate(text):
            if self.done:
                return at
            self._take(char)
            if self._bare and self.done:
                return at  # what follows a number ends it, and is none of it
        return len(text)

    def _take(self, char: str) -> None:
        if self._in_text:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_text = False
                self.done = self._depth == 0
        elif char == '"':
            self._in_text = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]" and self._depth > 0:
            self._depth -= 1
            self.done = self._depth == 0
        elif self._depth == 0 and char in ",}]" + _BLANK:
            self.done = self._bare
        elif self._depth == 0:
            self._bare = True


class CallObject:
    """Read one call. Implements `Inside`."""

    n_calls = 1

    def __init__(self, index: int) -> None:
        self.seen = ""
        self.done = self.bad = self.begun = False
        self._index = index
        self._state = "open"
        self._key = ""
        self._value = ""
        self._end = JsonEnd()
        self._name: str | None = None
        self._arguments = ""  # of a call whose name comes after them
        self._has_arguments = False

    def feed(self, text: str) -> tuple[list[ParserEvent], str]:
        """Take in text; return what is decided, and what is left behind the call."""
        events: list[ParserEvent] = []
        while text and not self.done and not self.bad:
            n_used, found = self._step(text)
            self.seen += text[:n_used]
            text = text[n_used:]
            events += found
        return events, text

    def _step(self, text: str) -> tuple[int, list[ParserEvent]]:
        if self._state in ("key", "value"):
            return self._inside(text)
        char = text[0]
        if char in _BLANK:
            return 1, []
        expected = {"open": "{", "colon": ":"}.get(self._state)
        if expected is not None:
            self.bad = char != expected
            self._state = {"open": "first", "colon": "before value"}[self._state]
            return 1, []
        if self._state == "before value":
            self._begin("value")
            return 0, []
        # Between two fields, or before the first.
        if char == "}":
            return 1, self._close()
        if char == "," and self._state == "after":
            self._state = "next"
            return 1, []
        if char == '"' and self._state in ("first", "next"):
            self._begin("key")
            return 0, []
        self.bad = True
        return 1, []

    def _begin(self, state: str) -> None:
        self._state, self._value, self._end = state, "", JsonEnd()

    def _inside(self, text: str) -> tuple[int, list[ParserEvent]]:
        n_used = self._end.take(text)
        piece = text[:n_used]
        self._value += piece
        events: list[ParserEvent] = []
        if self._state == "value" and self._key in ARGUMENTS and self._value[:1] != '"':
            events = self._argue(piece)
        if self._end.done:
            events += self._complete()
        return n_used, events

    def _complete(self) -> list[ParserEvent]:
        try:
            value = json.loads(self._value)
        except ValueError:
            value = None
        if self._state == "key":
            self.bad = not isinstance(value, str)
            self._key, self._state = str(value), "colon"
            return []
        self._state = "after"
        if self._key == "name":
            if not isinstance(value, str) or not value:
                self.bad = True
                return []
            return self._named(value)
        if self._key in ARGUMENTS and isinstance(value, str):
            return self._argue(value)  # JSON within JSON
        return []

    def _named(self, name: str) -> list[ParserEvent]:
        self._name, self.begun = name, True
        events: list[ParserEvent] = [ToolBegin(self._index, call_id(), name)]
        if self._arguments:
            events.append(ToolArguments(self._index, self._arguments))
        return events

    def _argue(self, piece: str) -> list[ParserEvent]:
        self._has_arguments = True
        if self._name is None:
            self._arguments += piece
            return []
        return [ToolArguments(self._index, piece)] if piece else []

    def _close(self) -> list[ParserEvent]:
        if self._name is None:
            self.bad = True
            return []
        self.done = True
        missing = [] if self._has_arguments else [ToolArguments(self._index, "{}")]
        return [*missing, ToolEnd(self._index)]
