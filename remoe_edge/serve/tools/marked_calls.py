"""Read text with calls between markers in it; who reads a call is handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from remoe_edge.engine.channels import partial
from remoe_edge.serve.events import ParserEvent, Text


class Inside(Protocol):
    """Read what stands behind an opening marker: a call, or several.

    seen: its text so far. done: it is complete. bad: it is no call after all. begun: the client has been
    told of a call. n_calls: calls that were begun.
    """

    seen: str
    done: bool
    bad: bool
    begun: bool

    @property
    def n_calls(self) -> int:
        """Count the calls that were begun."""
        ...

    def feed(self, text: str) -> tuple[list[ParserEvent], str]:
        """Take in text; return what is decided, and what is left behind it once it is done."""
        ...


class InStates:
    """Read in states: a method `_in_STATE` takes what it can of `_held`. Implements `Inside`."""

    def __init__(self, state: str) -> None:
        self.seen = ""
        self.done = self.bad = self.begun = False
        self.n_calls = 0
        self._state = state
        self._held = ""

    def feed(self, text: str) -> tuple[list[ParserEvent], str]:
        """Take in text; return what is decided, and what is left behind once it is done."""
        self.seen += text
        self._held += text
        events: list[ParserEvent] = []
        while not self.done and not self.bad:
            before = (self._state, self._held)
            events += getattr(self, f"_in_{self._state}")()
            if before == (self._state, self._held) and not self.done:
                return events, ""
        rest, self._held = (self._held if self.done else ""), ""
        return events, rest


class MarkedCalls:
    """Read an answer. Implements `ToolParser`.

    openings: markers, each with what of it the calls' reader is to see. close: the marker behind, None
    where there is none. inside: makes a reader, given the index of its first call. shown: how the first
    opening is written where it turns out to be text.
    """

    def __init__(
        self,
        openings: Sequence[tuple[str, str]],
        close: str | None,
        inside: Callable[[int], Inside],
        shown: str,
    ) -> None:
        self._openings, self._close = dict(openings), close
        self._make, self._shown = inside, shown
        self._opening = ""
        self._held = ""
        self._inside: Inside | None = None
        self._n_calls = 0
        self._blank = ""

    def feed(self, text: str) -> list[ParserEvent]:
        """Take in text; return what is decided."""
        self._held += text
        events: list[ParserEvent] = []
        while True:
            inside = self._inside
            found, again = self._outside() if inside is None else self._within(inside)
            events += found
            if not again:
                return events

    def end(self) -> list[ParserEvent]:
        """Return what was held back, once no more comes."""
        held, self._held = self._held, ""
        if self._inside is None:
            return self._text(held)
        if self._inside.begun:
            return []  # cut short: its arguments end where they end
        return self._text(self._marked(self._inside) + held)

    def _outside(self) -> tuple[list[ParserEvent], bool]:
        found = [(at, each) for each in self._openings if (at := self._held.find(each)) >= 0]
        if found:
            at, self._opening = min(found)
            before, self._held = self._held[:at], self._held[at + len(self._opening) :]
            self._held = self._openings[self._opening] + self._held
            self._inside = self._make(self._n_calls)
            return self._text(before), True
        ready = len(self._held) - partial(self._held, list(self._openings))
        before, self._held = self._held[:ready], self._held[ready:]
        return self._text(before), False

    def _within(self, inside: Inside) -> tuple[list[ParserEvent], bool]:
        events: list[ParserEvent] = []
        if not (inside.done or inside.bad):
            events, self._held = inside.feed(self._held)
        if inside.begun and (inside.done or inside.bad):
            if self._close is not None:
                at = self._held.find(self._close)
                if at < 0:
                    return events, False
                self._held = self._held[at + len(self._close) :]
            self._inside, self._blank = None, ""
            self._n_calls += inside.n_calls
            return events, True
        if inside.bad:
            self._inside = None
            return self._text(self._marked(inside)), True
        return events, False

    def _marked(self, inside: Inside) -> str:
        """Write what was taken for a call as the text that it is."""
        kept = self._openings[self._opening]
        shown = self._shown if not kept else ""
        return shown + inside.seen

    def _text(self, text: str) -> list[ParserEvent]:
        """Give out text, but for blanks at the end, which only part it from a call."""
        text = self._blank + text
        parts = self._n_calls or self._inside is not None
        ready = text.rstrip() if parts else text.rstrip("\n")
        self._blank = text[len(ready) :]
        return [Text(ready)] if ready else []
