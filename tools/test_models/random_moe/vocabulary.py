"""A working byte-level BPE tokenizer of any size, with ChatML special tokens.

The first 256 tokens are the bytes, then the special tokens, then strings of lower-case letters
("ab", "abc", ...), each with the merge that makes it from its prefix. Any text encodes and decodes
without loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, product
from string import ascii_lowercase
from typing import TYPE_CHECKING

from gguf import TokenType

if TYPE_CHECKING:
    from collections.abc import Iterator

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
MIN_VOCAB = 256 + len(SPECIAL) + 1

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """Hold the arrays of a GGUF tokenizer; ids are positions in `tokens`."""

    tokens: list[str]
    types: list[int]
    merges: list[str]

    @property
    def end_of_text(self) -> int:
        """Return the id that ends a document."""
        return 256

    @property
    def turn_end(self) -> int:
        """Return the id that ends a chat turn."""
        return 256 + SPECIAL.index(TURN_END)


def byte_symbols() -> list[str]:
    """Return the printable symbol that GPT-2's byte-level BPE gives each byte, in byte order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(printable)))
    return [symbols[byte] for byte in range(256)]


def _words() -> Iterator[str]:
    length = 2
    while True:
        yield from ("".join(letters) for letters in product(ascii_lowercase, repeat=length))
        length += 1


def vocabulary(n_vocab: int) -> Vocabulary:
    """Build a tokenizer of exactly `n_vocab` tokens, at least `MIN_VOCAB`."""
    if n_vocab < MIN_VOCAB:
        raise ValueError(f"a byte-level vocabulary needs {MIN_VOCAB} tokens or more, not {n_vocab}")
    words = list(islice(_words(), n_vocab - MIN_VOCAB + 1))
    tokens = [*byte_symbols(), *SPECIAL, *words]
    types = [int(TokenType.NORMAL)] * n_vocab
    types[256 : 256 + len(SPECIAL)] = [int(TokenType.CONTROL)] * len(SPECIAL)
    return Vocabulary(tokens, types, [f"{word[:-1]} {word[-1]}" for word in words])
