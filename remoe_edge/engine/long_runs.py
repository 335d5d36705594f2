"""Refuse text that would end the process: runs of characters too long for llama.cpp's tokenizer.

llama.cpp splits text into words before it makes tokens. For many byte-level vocabularies (DeepSeek,
gpt-oss, Mistral) it does that with std::regex, which goes a call deeper for each character of a word: in
a stack of 8 MiB, a word of some 25,000 ends the process. A word is a run of one kind of character, and
may be followed by a run of line breaks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from remoe_edge.errors import InputError

LONGEST = 10_000  # characters; two such runs together fit
_LONG = re.compile(rf"\s{{{LONGEST + 1},}}|\S{{{LONGEST + 1},}}")
# Vocabularies that llama.cpp splits by code of its own, where runs may be of any length.
_BY_HAND = frozenset(
    {
        "dbrx", "glm4", "gpt-2", "granite-docling", "hunyuan", "kimi-k2", "lfm2", "llama-bpe", "qwen2",
        "qwen35", "refact", "smollm",
    }
)  # fmt: skip


def splits_by_regex(metadata: Mapping[str, str]) -> bool:
    """Say whether llama.cpp may split a model's text with std::regex, by the model's header."""
    is_byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"
    return is_byte_level and metadata.get("tokenizer.ggml.pre") not in _BY_HAND


def check_runs(text: str) -> None:
    """Raise InputError for more than LONGEST letters, digits, blanks or symbols in a row."""
    for found in _LONG.finditer(text):
        if found[0].isspace() or _has_long_run(found[0]):
            raise InputError(
                f"the text has more than {LONGEST} letters, digits, blanks or symbols in a row, which "
                "llama.cpp cannot split into this model's tokens: put something else between them"
            )


def _has_long_run(text: str) -> bool:
    letters = digits = symbols = 0
    for each in text:
        kind = unicodedata.category(each)[0]  # a mark (M) may be in a run of letters or of symbols
        letters = letters + 1 if kind in "LM" else 0
        digits = digits + 1 if kind == "N" else 0
        symbols = symbols + 1 if kind not in "LN" else 0
        if max(letters, digits, symbols) > LONGEST:
            return True
    return False
