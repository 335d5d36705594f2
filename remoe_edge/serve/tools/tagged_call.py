"""Read a call whose arguments stand between tags, each as it is and not as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remoe_edge.engine.channels import partial
from remoe_edge.serve.events import ParserEvent, ToolArguments, ToolBegin, ToolEnd
from remoe_edge.serve.tools.argument_writer import ArgumentWriter
from remoe_edge.serve.tools.format import Tool, call_id
from remoe_edge.serve.tools.marked_calls import InStates

_LONGEST_NAME = 256


@dataclass(frozen=True)
class Tags:
    """Say how a call is tagged, with the markers spelled as they come.

    before_name: "" where the name comes first. behind_name: what ends it. end: what ends the call.
    keeps_end: whoever reads around the call takes its end. before_value: "" where the value follows its
    key at once. trims: see `ArgumentWriter`.
    """

    before_name: str
    behind_name: str
    before_key: str
    behind_key: str
    before_value: str
    behind_value: str
    end: str
    keeps_end: bool
    trims: bool


class TaggedCall(InStates):
    """Read one call. Implements `Inside`."""

    def __init__(self, index: int, tags: Tags, tools: Sequence[Tool]) -> None:
        super().__init__("opening" if tags.before_name else "name")
        self.n_calls = 1
        self._index, self._tags = index, tags
        self._schemas: dict[str, Mapping[str, Any]] = {each.name: each.parameters for each in tools}
        self._writer = ArgumentWriter({}, trims=tags.trims)

    def _expect(self, marker: str) -> bool:
        """Take a marker, after blanks; wait while it may be coming; anything else is no call."""
        self._held = self._held.lstrip()
        if self._held.startswith(marker):
            self._held = self._held[len(marker) :]
            return True
        self.bad = not marker.startswith(self._held)
        return False

    def _in_opening(self) -> list[ParserEvent]:
        if self._expect(self._tags.before_name):
            self._state = "name"
        return []

    def _in_name(self) -> list[ParserEvent]:
        tags = self._tags
        self._held = self._held.lstrip()
        ends = (tags.behind_name, tags.before_key, tags.end)
        found = [(at, each) for each in ends if (at := self._held.find(each)) >= 0]
        if not found:
            self.bad = len(self._held) > _LONGEST_NAME or not _may_be_name(self._held, ends)
            return []
        at, which = min(found)
        name, self._held = self._held[:at].strip(), self._held[at:]
        if not name or not _may_be_name(name, ()):
            self.bad = True
            return []
        if which == tags.behind_name:
            self._held = self._held[len(which) :]
        self._writer = ArgumentWriter(self._schemas.get(name, {}), trims=tags.trims)
        self.begun, self._state = True, "next"
        return [ToolBegin(self._index, call_id(), name)]

    def _in_next(self) -> list[ParserEvent]:
        tags = self._tags
        ends = [tags.before_key, tags.end]
        found = [(at, each) for each in ends if (at := self._held.find(each)) >= 0]
        if not found:
            self._held = self._held[len(self._held) - partial(self._held, ends) :]
            return []
        at, which = min(found)
        if which == tags.before_key:
            self._held, self._state = self._held[at + len(which) :], "key"
            return []
        self._held = self._held[at if tags.keeps_end else at + len(which) :]
        self.done = True
        return [*self._argue(self._writer.close()), ToolEnd(self._index)]

    def _in_key(self) -> list[ParserEvent]:
        at = self._held.find(self._tags.behind_key)
        if at < 0:
            return []
        key, self._held = self._held[:at].strip(), self._held[at + len(self._tags.behind_key) :]
        self._state = "before_value" if self._tags.before_value else "value"
        return self._argue(self._writer.begin(key))

    def _in_before_value(self) -> list[ParserEvent]:
        at = self._held.find(self._tags.before_value)
        if at >= 0:
            self._held, self._state = self._held[at + len(self._tags.before_value) :], "value"
        return []

    def _in_value(self) -> list[ParserEvent]:
        marker = self._tags.behind_value
        at = self._held.find(marker)
        ready = at if at >= 0 else len(self._held) - partial(self._held, [marker])
        written = self._writer.take(self._held[:ready])
        self._held = self._held[ready:]
        if at >= 0:
            self._held, self._state = self._held[len(marker) :], "next"
            written += self._writer.finish()
        return self._argue(written)

    def _argue(self, text: str) -> list[ParserEvent]:
        return [ToolArguments(self._index, text)] if text else []


def _may_be_name(text: str, ends: Sequence[str]) -> bool:
    """Say whether a tool may be called so; ends: markers that may be coming behind it."""
    name = text[: len(text) - partial(text, ends)].rstrip() if ends else text
    return all(each.isalnum() or each in "_-.:/" for each in name)
