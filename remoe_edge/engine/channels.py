"""Tell an answer from the reasoning before it, while it is written.

Models write reasoning between markers of their own: `<think>...</think>` (Qwen3, DeepSeek, GLM, ...),
or as messages on channels (gpt-oss, "harmony"), of which only the final one is the answer. Where a
marker is a token of the vocabulary, only that token counts, since an answer may spell it. Where it is
none, its text counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from remoe_edge.engine.tokenizer import Tokenizer

# What opens and closes reasoning, and what the model writes first inside that is no reasoning.
PAIRS = (
    ("<think>", "</think>", ""),
    ("[THINK]", "[/THINK]", ""),  # Mistral
    ("<seed:think>", "</seed:think>", ""),
    ("<mm:think>", "</mm:think>", ""),  # MiniMax
    ("<|START_THINKING|>", "<|END_THINKING|>", ""),  # Command
    ("<|channel>", "<channel|>", "thought\n"),  # Gemma
)
CHANNEL, MESSAGE, START, CONSTRAIN = "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"
MESSAGE_END = "<|end|>"
HARMONY = (CHANNEL, MESSAGE, START, CONSTRAIN, MESSAGE_END, "<|return|>", "<|call|>")


@dataclass(frozen=True)
class Part:
    """Hold a piece of an answer, or of the reasoning before it."""

    text: str
    reasoning: bool = False


class Splitter(Protocol):
    """Split what a model writes, token by token."""

    def feed(self, token: int, text: str) -> list[Part]:
        """Take in a token, and the text that became whole with it; return what is decided."""

    def end(self, text: str = "") -> list[Part]:
        """Take in the last text, of no token; return what was held back."""


@dataclass(frozen=True)
class Channels:
    """Say how a model marks reasoning.

    ids: markers that are tokens. spelled: those that are none. harmony: messages on channels, rather than
    a pair of markers. opened: the prompt ends inside the reasoning.
    """

    ids: Mapping[int, str]
    spelled: tuple[str, ...]
    pair: tuple[str, str, str] | None
    opened: bool = False

    def splitter(self) -> Splitter:
        """Make a splitter for one answer."""
        scanner = _Scanner(self.ids, self.spelled)
        if self.pair is None:
            return _Harmony(scanner)
        return _Thinking(scanner, self.pair, self.opened, set(self.ids.values()))


@dataclass(frozen=True)
class AnswerForm:
    """Say how a model writes an answer to a prompt: what ends it, and what marks reasoning.

    ends: tokens that end it besides those of `Tokenizer.is_end`.
    """

    ends: frozenset[int] = frozenset()
    channels: Channels | None = None

    def reader(self, on_reasoning: Callable[[str], object] | None = None) -> AnswerReader:
        """Make a reader of one answer; `on_reasoning` is called with pieces of reasoning."""
        splitter = _Plain() if self.channels is None else self.channels.splitter()
        return AnswerReader(splitter, on_reasoning)


PLAIN = AnswerForm()


class AnswerReader:
    """Read one answer as it is written: give its text, and keep its reasoning apart.

    n_reasoning: tokens with which reasoning was written.
    """

    def __init__(self, splitter: Splitter, on_reasoning: Callable[[str], object] | None) -> None:
        self.reasoning = ""
        self.n_reasoning = 0
        self._splitter = splitter
        self._on_reasoning = on_reasoning

    def feed(self, token: int, text: str) -> str:
        """Take in a token, and the text that became whole with it; return text of the answer."""
        parts = self._splitter.feed(token, text)
        self.n_reasoning += any(part.reasoning for part in parts)
        return self._answer(parts)

    def end(self, text: str = "") -> str:
        """Take in the last text, of no token; return what was held back of the answer."""
        return self._answer(self._splitter.end(text))

    def _answer(self, parts: Sequence[Part]) -> str:
        for part in parts:
            if part.reasoning:
                self.reasoning += part.text
                if self._on_reasoning is not None:
                    self._on_reasoning(part.text)
        return "".join(part.text for part in parts if not part.reasoning)


def channels_of(source: str, prompt: str, tokenizer: Tokenizer) -> Channels | None:
    """Tell the channels of a model from its template and what that has written; None without any."""
    if CHANNEL in source and MESSAGE in source:
        return Channels(*_known(HARMONY, tokenizer), None)
    for pair in PAIRS:
        if pair[0] in source or pair[1] in source:
            opened = prompt.rstrip().endswith((pair[0], (pair[0] + pair[2]).rstrip()))
            return Channels(*_known(pair[:2], tokenizer), pair, opened)
    return None


def _known(markers: Sequence[str], tokenizer: Tokenizer) -> tuple[dict[int, str], tuple[str, ...]]:
    found = {each: tokenizer.special(each) for each in markers}
    ids = {special.token: marker for marker, special in found.items() if special is not None}
    return ids, tuple(marker for marker, special in found.items() if special is None)


class _Plain:
    def feed(self, token: int, text: str) -> list[Part]:
        return [Part(text)] if text else []

    def end(self, text: str = "") -> list[Part]:
        return [Part(text)] if text else []


class _Scanner:
    """Find markers in what comes; hold back text that may become one."""

    def __init__(self, ids: Mapping[int, str], spelled: Sequence[str]) -> None:
        self._ids = ids
        self._spelled = spelled
        self._held = ""

    def feed(self, token: int, text: str) -> list[tuple[str, bool]]:
        """Return (text, is it a marker?) in order."""
        if token in self._ids:
            return [*self.end(), (self._ids[token], True)]
        self._held += text
        found: list[tuple[str, bool]] = []
        while marks := [(at, m) for m in self._spelled if (at := self._held.find(m)) >= 0]:
            at, marker = min(marks)
            found += [(self._held[:at], False), (marker, True)]
            self._held = self._held[at + len(marker) :]
        ready = len(self._held) - partial(self._held, self._spelled)
        found.append((self._held[:ready], False))
        self._held = self._held[ready:]
        return [each for each in found if each[0]]

    def end(self, text: str = "") -> list[tuple[str, bool]]:
        """Return what was held back, and `text`."""
        rest, self._held = self._held + text, ""
        return [(rest, False)] if rest else []


def partial(text: str, markers: Sequence[str]) -> int:
    """Count the characters at the end of `text` that one of `markers` could begin with."""
    longest = 0
    for each in markers:
        for n in range(min(len(each) - 1, len(text)), longest, -1):
            if text.endswith(each[:n]):
                longest = n
                break
    return longest


class _Reasoning:
    """Give out reasoning without the blank text around it."""

    def __init__(self, label: str = "") -> None:
        self._label = label  # what may stand before it
        self._between = ""  # what parts it from reasoning given out before
        self._held = ""
        self._begun = False

    def begin(self) -> None:
        """Begin anew, perhaps not for the first time."""
        if self._begun:
            self._between = "\n\n"
        self._begun, self._held = False, ""

    def take(self, text: str) -> list[Part]:
        """Take in text, and return what is decided."""
        text = self._held + text
        if not self._begun:
            if self._label.startswith(text) and text != self._label:
                self._held = text
                return []
            text = text.removeprefix(self._label).lstrip()
        ready = text.rstrip()
        self._held = text[len(ready) :]
        if not ready:
            return []
        if not self._begun:
            self._begun, ready = True, self._between + ready
        return [Part(ready, reasoning=True)]


class _Thinking:
    """Split at a pair of markers."""

    def __init__(
        self, scanner: _Scanner, pair: tuple[str, str, str], opened: bool, tokens: set[str]
    ) -> None:
        self._scanner = scanner
        self._open, self._close, self._label = pair
        self._tokens = tokens
        self._reasoning = _Reasoning(self._label)
        # start: nothing but blanks yet. after: nothing but blanks since the reasoning.
        self._state = "reasoning" if opened else "start"
        self._blank = ""

    def feed(self, token: int, text: str) -> list[Part]:
        return self._split(self._scanner.feed(token, text))

    def end(self, text: str = "") -> list[Part]:
        parts = self._split(self._scanner.end(text))
        blank, self._blank = self._blank, ""
        return [*parts, Part(blank)] if blank else parts

    def _split(self, found: list[tuple[str, bool]]) -> list[Part]:
        parts: list[Part] = []
        for text, is_marker in found:
            parts += self._mark(text) if is_marker else self._text(text)
        return parts

    def _mark(self, marker: str) -> list[Part]:
        # In the middle of an answer, only a token is more than its spelling.
        if self._state == "answer" and marker not in self._tokens:
            return [Part(marker)]
        if marker == self._open and self._state != "reasoning":
            self._state, self._blank = "reasoning", ""
            self._reasoning.begin()
        elif marker == self._close and self._state != "answer":
            self._state, self._blank = "after", ""
        return []

    def _text(self, text: str) -> list[Part]:
        if self._state == "reasoning":
            return self._reasoning.take(text)
        if self._state == "after":
            text = text.lstrip()
        elif self._state == "start":
            text = self._blank + text
        if self._state != "answer" and not text.strip():
            self._blank = text
            return []
        self._state, self._blank = "answer", ""
        return [Part(text)]


@dataclass
class _Harmony:
    """Split messages of the form `<|channel|>NAME<|message|>TEXT<|end|><|start|>assistant...`."""

    scanner: _Scanner
    _header: str | None = None  # what has been read of a message's header; None in its text
    _channel: str = "final"  # an answer without a header is one all the same
    _reasoning: _Reasoning = field(default_factory=_Reasoning)

    def feed(self, token: int, text: str) -> list[Part]:
        return self._split(self.scanner.feed(token, text))

    def end(self, text: str = "") -> list[Part]:
        return self._split(self.scanner.end(text))

    def _split(self, found: list[tuple[str, bool]]) -> list[Part]:
        parts: list[Part] = []
        for text, is_marker in found:
            if is_marker:
                self._mark(text)
            elif self._header is not None:
                self._header += text
            elif self._channel == "final":
                parts.append(Part(text))
            else:
                parts += self._reasoning.take(text)
        return parts

    def _mark(self, marker: str) -> None:
        if marker == START:
            self._header, self._channel = "", "final"
        elif marker == CHANNEL:
            self._header = ""  # the role before it says nothing that is shown
            self._channel = ""
        elif marker == CONSTRAIN and self._header is not None:
            self._header += " "
        elif marker == MESSAGE:
            words = (self._header or "").split()
            if self._channel == "":
                self._channel = words[0] if words else "final"
                self._reasoning.begin()
            self._header = None
        elif self._header is None:  # the message ends
            self._channel = "final"
