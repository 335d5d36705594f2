"""A conversation as its template has written it, which remembers what came from the user.

A user may spell "<|im_end|>" in a message, and that must not end the message. Before a template runs,
`Guard` puts a character that no text has into each such spelling. Where the character is found again
afterwards, the text that it breaks is the user's, and `Tokenizer` keeps it text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from remoe_edge.engine.channels import AnswerForm

# Noncharacters: Unicode promises that no text needs them.
_SENTINELS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Prompt(str):
    """Hold what a template has written; without breaks, it is as good as any text.

    breaks: positions that no special token may reach across, ascending. form: how the model writes an
    answer to it. Slices and sums are plain text: they forget both.
    """

    breaks: tuple[int, ...]
    form: AnswerForm

    def __new__(cls, text: str, breaks: Iterable[int], form: AnswerForm) -> Prompt:
        """Make one."""
        self = super().__new__(cls, text)
        self.breaks = tuple(breaks)
        self.form = form
        return self


class Guard:
    """Mark the spellings of special tokens in what is given to a template.

    spellings: those to guard, each of two characters or more. given: all that the template is given.
    """

    def __init__(self, spellings: Iterable[str], *given: Any) -> None:
        self._spellings = sorted(set(spellings), key=len, reverse=True)
        self._starts = {each[:n] for each in self._spellings for n in range(1, len(each))}
        self._longest = max(map(len, self._starts), default=0)
        self._sentinel = unused_character(given)
        code = f"{ord(self._sentinel):x}"
        # A template may have written it as JSON does.
        self._mark = re.compile(rf"{self._sentinel}|\\u{code}", re.IGNORECASE)

    def marked(self, value: Any) -> Any:
        """Return a copy of messages, tools, ... with every spelling in their texts marked."""
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(each) for each in value]
        return value

    def _marked_text(self, text: str) -> str:
        marks = set()
        for each in self._spellings:
            at = text.find(each)
            while at >= 0:
                marks.add(at + 1)
                at = text.find(each, at + 1)
        # What follows in the prompt may be the rest of a spelling: texts are put together.
        for n in range(1, min(self._longest, len(text)) + 1):
            if text[-n:] in self._starts:
                marks.add(len(text) - n + 1)
        if not marks:
            return text
        ends = [0, *sorted(marks), len(text)]
        pieces = (text[a:b] for a, b in pairwise(ends))
        return self._sentinel.join(pieces)

    def read(self, rendered: str) -> tuple[str, list[int]]:
        """Return the text without the marks, and where they were."""
        pieces = self._mark.split(rendered)
        breaks, at = [], 0
        for piece in pieces[:-1]:
            at += len(piece)
            breaks.append(at)
        return "".join(pieces), breaks


def unused_character(given: Any) -> str:
    """Give a character that stands in none of the texts. Raises InputError where there is none."""
    taken = {char for text in _texts(given) for char in text if "\ufdd0" <= char < "\ufdf0"}
    escaped = {
        chr(int(code, 16))
        for text in _texts(given)
        for code in re.findall(r"\\u(fd[de][0-9a-f])", text, re.IGNORECASE)
    }
    for sentinel in _SENTINELS:
        if sentinel not in taken | escaped:
            return sentinel
    raise InputError("the messages use every noncharacter of Unicode: one is needed to guard them")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
