"""Tiny models that answer in letters: a greedy answer is text that shows, and ends at its bound alone.

A random model may end at once, or say blanks; which of them it does depends on the processor's rounding.
"""

from __future__ import annotations

from pathlib import Path

import gguf

import tiny_moe
from random_moe import vocabulary


def letters_only(model: Path) -> Path:
    """Have a model's other tokens score 0, in place: of the letters some always score more."""
    reader = gguf.GGUFReader(model, "r+")
    (output,) = [each for each in reader.tensors if each.name == "output.weight"]
    words = vocabulary.vocabulary(tiny_moe.N_VOCAB).tokens
    for token, word in enumerate(words):
        if not (word.isascii() and word.isalpha() and word.islower()):
            output.data[token] = 0
    output.data.flush()
    return model
