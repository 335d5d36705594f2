"""Turn one value in Python's notation into JSON while it comes."""

from __future__ import annotations

import json

_WORDS = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_HEX = {"x": 2, "u": 4, "U": 8}
_BLANK = " \t\r\n"


class PythonValue:
    """Read texts, numbers, True, False, None, lists and dicts. done: the value is complete."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quote = ""  # of the text that is being read
        self._escape: str | None = None  # what has come of an escape, None outside one
        self._word = ""
        self._begun = False

    def take(self, text: str) -> tuple[str, int]:
        """Take in text; return its JSON, and how many of its characters belong to the value."""
        made = ""
        for at, char in enumerate(text):
            if self.done:
                return made, at
            if self._quote:
                made += self._in_text(char)
                continue
            if self._word and not _in_word(char):
                made += self._end_word()
                if self.done:
                    return made, at
            if self._depth == 0 and self._begun and char in ",)]":
                self.done = True
                return made, at
            made += self._outside(char)
        return made, len(text)

    def _outside(self, char: str) -> str:
        if char in _BLANK:
            return " " if self._depth and char == " " else ""
        self._begun = True
        if char in "'\"":
            self._quote = char
            return '"'
        if char in "[{(":
            self._depth += 1
            return "[" if char == "(" else char
        if char in "]})":
            self._depth -= 1
            self.done = self._depth == 0
            return "]" if char == ")" else char
        if char in ",:":
            return char
        self._word += char
        return ""

    def _end_word(self) -> str:
        word, self._word = self._word, ""
        self.done = self._depth == 0
        word = _WORDS.get(word, word)
        try:
            json.loads(word, parse_constant=_no_constant)
        except ValueError:
            return json.dumps(word, ensure_ascii=False)
        return word

    def _in_text(self, char: str) -> str:
        if self._escape is not None:
            return self._escaped(char)
        if char == "\\":
            self._escape = ""
            return ""
        if char == self._quote:
            self._quote = ""
            self.done = self._depth == 0
            return '"'
        return _inner(char)

    def _escaped(self, char: str) -> str:
        assert self._escape is not None
        self._escape += char
        kind = self._escape[0]
        if kind in _HEX and len(self._escape) <= _HEX[kind]:
            return ""
        found, self._escape = self._escape, None
        if kind not in _HEX:
            return _inner(_ESCAPES.get(kind, kind))
        try:
            code = int(found[1:], 16)
            return f"\\u{code:04x}" if 0xD800 <= code < 0xE000 else _inner(chr(code))
        except (ValueError, OverflowError):
            return _inner("\\" + found)


def _in_word(char: str) -> bool:
    return char.isalnum() or char in "_.+-"


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _no_constant(name: str) -> None:
    raise ValueError(name)
