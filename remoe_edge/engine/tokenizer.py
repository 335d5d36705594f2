"""A model's tokens: from text to ids and back, which are special, and which end an answer.

Special tokens are those that llama.cpp looks for in a text before it tokenises the rest: control tokens,
which it only looks for when asked (`special`), and user-defined ones, which it always does.
"""

from __future__ import annotations

import ctypes
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from remoe_edge.engine.long_runs import check_runs, splits_by_regex
from remoe_edge.engine.prompt import Prompt
from remoe_edge.errors import InputError
from remoe_edge.native import llama_cpp

_low = llama_cpp.llama_cpp

_CONTROL = _low.LLAMA_TOKEN_ATTR_CONTROL | _low.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIAL = _CONTROL | _low.LLAMA_TOKEN_ATTR_USER_DEFINED
_MARKER = re.compile(r"<[|｜].*>|<.*[|｜]>", re.DOTALL)
_SPACES = " \t\n\v\f\r"  # C's isspace


@dataclass(frozen=True)
class Special:
    """Hold a special token: its id, its spelling, and llama.cpp's attributes."""

    token: int
    text: str
    attributes: int

    @property
    def control(self) -> bool:
        """Say whether it is only looked for in a text when that is asked for."""
        return bool(self.attributes & _CONTROL)

    @property
    def guarded(self) -> bool:
        """Say whether a user's text that spells it must stay text.

        llama.cpp makes gpt-oss's markers user-defined, and Gemma's are: so `<|...|>` counts, and half of
        it. Other user-defined tokens are pieces of text with an id of their own ("\\n\\n", "<h1>"), and a
        user may write them.
        """
        marker = _MARKER.fullmatch(self.text) is not None
        return len(self.text) > 1 and (self.control or marker)


class Tokenizer:
    """Hold the vocabulary of a `llama_cpp.Llama`, which must outlive it. One thread at a time."""

    def __init__(self, llama: Any) -> None:
        self._vocab = llama._model.vocab
        self._llama = llama
        self._by_regex = splits_by_regex(llama.metadata)
        self.bos: int = _low.llama_vocab_bos(self._vocab)
        self.eos: int = _low.llama_vocab_eos(self._vocab)
        self.adds_bos = bool(_low.llama_vocab_get_add_bos(self._vocab)) and self.bos != -1
        self.adds_eos = bool(_low.llama_vocab_get_add_eos(self._vocab)) and self.eos != -1

    # --- single tokens ---

    @cached_property
    def specials(self) -> tuple[Special, ...]:
        """Give the special tokens in the order in which llama.cpp looks for them: the longest first."""
        attributes = _low.llama_vocab_get_attr
        found = []
        for token in range(_low.llama_vocab_n_tokens(self._vocab)):
            if (attribute := attributes(self._vocab, token)) & _SPECIAL:
                text = self.spelling(token)
                if text:
                    found.append(Special(token, text, attribute))
        return tuple(sorted(found, key=lambda each: -len(each.text.encode())))

    def special(self, text: str) -> Special | None:
        """Return the special token of that spelling."""
        return self._by_text.get(text)

    @cached_property
    def _by_text(self) -> dict[str, Special]:
        return {each.text: each for each in self.specials}

    def spelling(self, token: int) -> str:
        """Return a token as the vocabulary spells it; empty for -1, and for what is no UTF-8."""
        if token < 0:
            return ""
        try:
            return str(_low.llama_vocab_get_text(self._vocab, token).decode())
        except UnicodeDecodeError:
            return ""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return what a token adds to an answer: nothing for a control token, unless `special`."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n_bytes = _low.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            size = -n_bytes

    def is_end(self, token: int) -> bool:
        """Say whether a token ends an answer, as llama.cpp knows the vocabulary."""
        return bool(_low.llama_vocab_is_eog(self._vocab, token))

    # --- text to ids ---

    def encode(self, text: str | bytes, *, special: bool = False, bos: bool = True) -> list[int]:
        """Turn text into token ids.

        special: control tokens may be written in the text; in a `Prompt`, only by its template.
        bos: begin with BOS, and end a plain text with EOS, if the model wants them; never twice.
        """
        if isinstance(text, Prompt):
            tokens = self._written(text) if special and text.breaks else self._ids(text, special)
        else:
            tokens = self._ids(text, special)
        if bos and self.adds_bos and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)
        # What a chat template wrote is to be gone on with.
        if bos and self.adds_eos and not isinstance(text, Prompt) and tokens[-1:] != [self.eos]:
            tokens.append(self.eos)
        return tokens

    def _ids(self, text: str | bytes, special: bool) -> list[int]:
        try:
            if isinstance(text, bytes):
                text = text.decode()  # llama.cpp ends the process over what is no UTF-8
            data = text.encode()
        except UnicodeError as error:
            raise InputError(f"the text is no UTF-8: {error}") from error
        if self._by_regex:
            check_runs(text)
        tokens: list[int] = self._llama.tokenize(data, add_bos=False, special=special)
        return tokens

    def _written(self, prompt: Prompt) -> list[int]:
        """Tokenise with the template's special tokens, and the user's spellings of them as text.

        llama.cpp tokenises what lies between two special tokens by itself. So a text can be taken apart
        there, and each part gives what it gives in the whole.
        """
        parts, spelled = self._parts(prompt)
        tokens: list[int] = []
        ordinary = ""  # what can be left to llama.cpp
        for part in parts:
            inside = spelled[bisect_left(spelled, part.begin) : bisect_left(spelled, part.end)]
            if part.special or not inside:
                ordinary += prompt[part.begin : part.end]
                continue
            tokens += self._ids(ordinary, special=True) if ordinary else []
            ordinary = ""
            tokens += self._as_text(prompt, part, inside)
        return tokens + (self._ids(ordinary, special=True) if ordinary else [])

    def _as_text(self, prompt: Prompt, part: _Part, spelled: list[int]) -> list[int]:
        """Tokenise a part in which a user has spelled special tokens."""
        tokens = self._ids(prompt[part.begin : part.end], special=False)
        if self._guarded.isdisjoint(tokens):
            return tokens
        # llama.cpp finds user-defined tokens in any text, and may merge its way to a control token.
        breaks = {prompt.breaks[bisect_right(prompt.breaks, at)] for at in spelled}
        tokens = []
        for begin, end in pairwise([part.begin, *sorted(breaks), part.end]):
            tokens += self._ids(prompt[begin:end], special=False)
        return tokens

    @cached_property
    def _guarded(self) -> frozenset[int]:
        return frozenset(each.token for each in self.specials if each.guarded)

    def _parts(self, prompt: Prompt) -> tuple[list[_Part], list[int]]:
        """Take a prompt apart as llama.cpp does; tell too where a user has spelled special tokens."""
        parts = [_Part(0, len(prompt))]
        spelled: list[int] = []
        for special in self.specials:
            if special.text in prompt:
                parts = [new for part in parts for new in _split(prompt, part, special, spelled)]
        return parts, sorted(spelled)


@dataclass(frozen=True)
class _Part:
    """Hold where in a prompt a special token is, or text between two."""

    begin: int
    end: int
    special: Special | None = None


def _split(prompt: Prompt, part: _Part, special: Special, spelled: list[int]) -> Iterator[_Part]:
    """Split text at a special token where the template has written it; add where the user has."""
    if part.special is not None:
        yield part
        return
    begin = at = part.begin
    while (at := prompt.find(special.text, at, part.end)) >= 0:
        end = at + len(special.text)
        following = bisect_right(prompt.breaks, at)
        if following < len(prompt.breaks) and prompt.breaks[following] < end:
            spelled.append(at)
            at += 1
            continue
        left = prompt[begin:at]
        if special.attributes & _low.LLAMA_TOKEN_ATTR_LSTRIP:
            left = left.rstrip(_SPACES)
        if left:
            yield _Part(begin, begin + len(left))
        yield _Part(at, end, special)
        if special.attributes & _low.LLAMA_TOKEN_ATTR_RSTRIP:
            while end < part.end and prompt[end] in _SPACES:
                end += 1
        begin = at = end
    if begin < part.end:
        yield _Part(begin, part.end)
