"""What a way of writing tool calls has to know, and how its special tokens reach its parser.

A parser reads text. Where a marker is a token of the vocabulary, only that token is the marker, since an
answer may spell it: `ToolForm` then writes it with a character before it that no text has.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from remoe_edge.engine.channels import AnswerForm, AnswerReader, Part, Splitter
from remoe_edge.serve.events import ParserEvent
from remoe_edge.serve.schemas import Rules

if TYPE_CHECKING:
    from remoe_edge.engine.tokenizer import Tokenizer

_SENTINEL = "\ufdef"  # a noncharacter: Unicode promises that no text needs it


@dataclass(frozen=True)
class Tool:
    """Hold a function that the model may call. parameters: the JSON schema of its arguments."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def for_template(self) -> dict[str, Any]:
        """Give it as chat templates know it."""
        function = {"name": self.name, "parameters": dict(self.parameters)}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function}


class ToolParser(Protocol):
    """Read one answer's text as it comes."""

    def feed(self, text: str) -> list[ParserEvent]:
        """Take in text; return what is decided."""
        ...

    def end(self) -> list[ParserEvent]:
        """Return what was held back, once no more comes: a call that is none was text."""
        ...


class ToolFormat(Protocol):
    """One way of writing calls. name: as errors have it. markers: what its parser looks for."""

    name: str
    markers: tuple[str, ...]
    splits_reasoning: bool  # the parser itself tells reasoning from the answer

    def matches(self, template: str) -> bool:
        """Say whether a chat template has the model write calls so."""
        ...

    def parser(self, spelled: Callable[[str], str], tools: Sequence[Tool]) -> ToolParser:
        """Make a parser; `spelled` says how a marker is written in the text that it reads.

        tools: where a call does not say of what type an argument is, its schema does.
        """
        ...

    def grammar(self, rules: Rules, tools: Sequence[Tool], *, one: bool) -> str:
        """Write what a grammar's root is to hold an answer to calls, at least one, of `tools`."""
        ...


@dataclass(frozen=True)
class ToolForm(AnswerForm):
    """Say how a model writes an answer with calls: as `AnswerForm`, with the markers left in its text.

    marker_ids: markers that are tokens. strict: no spelling counts for those.
    """

    marker_ids: Mapping[int, str] | None = None
    strict: bool = True
    raw: bool = False  # reasoning too is left in the text

    def reader(self, on_reasoning: Callable[[str], object] | None = None) -> AnswerReader:
        """Make a reader of one answer."""
        inner: Splitter = _Whole()
        if self.channels is not None and not self.raw:
            inner = self.channels.splitter()
        marks = {token: self.spelled(text) for token, text in (self.marker_ids or {}).items()}
        return AnswerReader(_Marked(inner, marks), on_reasoning)

    def spelled(self, marker: str) -> str:
        """Say how a marker is written in the text of the answer."""
        is_token = marker in (self.marker_ids or {}).values()
        return _SENTINEL + marker if is_token and self.strict else marker


def tool_form(form: AnswerForm, format_: ToolFormat, words: Tokenizer, *, strict: bool) -> ToolForm:
    """Make the form of an answer with calls from that of one without."""
    known = {each: words.special(each) for each in format_.markers}
    ids = {special.token: marker for marker, special in known.items() if special is not None}
    return ToolForm(form.ends, form.channels, ids, strict, format_.splits_reasoning)


def call_id() -> str:
    """Make an id for a call: nine letters and digits, which is what Mistral's templates insist on."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(9))


class _Whole:
    def feed(self, token: int, text: str) -> list[Part]:
        return [Part(text)] if text else []

    def end(self, text: str = "") -> list[Part]:
        return [Part(text)] if text else []


class _Marked:
    """Write markers that are tokens into the text. Implements `Splitter`."""

    def __init__(self, inner: Splitter, marks: Mapping[int, str]) -> None:
        self._inner, self._marks = inner, marks

    def feed(self, token: int, text: str) -> list[Part]:
        return self._inner.feed(token, self._marks.get(token, text))

    def end(self, text: str = "") -> list[Part]:
        return self._inner.end(text)
