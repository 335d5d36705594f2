"""Read `[{"name": ..., "arguments": {...}}, ...]` as it comes."""

from __future__ import annotations

from remoe_edge.serve.events import ParserEvent
from remoe_edge.serve.tools.call_object import CallObject

_BLANK = " \t\r\n"


class CallList:
    """Read several calls. Implements `Inside`."""

    def __init__(self, index: int) -> None:
        self.seen = ""
        self.done = self.bad = self.begun = False
        self._index, self._n_done = index, 0
        self._call: CallObject | None = None
        self._opened = False

    def feed(self, text: str) -> tuple[list[ParserEvent], str]:
        """Take in text; return what is decided, and what is left behind the list."""
        events: list[ParserEvent] = []
        while text and not self.done and not self.bad:
            if self._call is None:
                self._between(text[0])
                if self._call is None:
                    self.seen, text = self.seen + text[0], text[1:]
                continue
            n_before = len(self._call.seen)
            found, text = self._call.feed(text)
            events += found
            self.seen += self._call.seen[n_before:]
            self.begun = self.begun or self._call.begun
            self.bad = self._call.bad
            if self._call.done:
                self._call, self._n_done = None, self._n_done + 1
        return events, text

    @property
    def n_calls(self) -> int:
        """Count the calls that were begun."""
        return self._n_done + (self._call is not None and self._call.begun)

    def _between(self, char: str) -> None:
        if not self._opened:
            self._opened = char == "["
            self.bad = not self._opened and char not in _BLANK
        elif char == "{":
            self._call = CallObject(self._index + self._n_done)
        elif char == "]":
            self.done, self.bad = self.begun, not self.begun
        else:
            self.bad = char not in _BLANK + ","
