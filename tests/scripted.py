"""Tiny models that say what a test has written: after a given ending of the prompt, a given text.

A text is one token of the vocabulary, and what the model says follows from the token before alone. The
experts are read and computed as ever, and add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import TokenType
from gguf.quants import quantize
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

import tiny_moe
from letters import NO_SAY, embedded
from random_moe import vocabulary

_PEAK = 30.0  # the logit of what is said: no temperature that a test uses chooses anything else


def scripted(path: Path, template: str, said: Mapping[str, str]) -> Path:
    """Write a model. said: what it says after a prompt's last token (a character), and then ends."""
    plain = tiny_moe.make(path.with_suffix(".plain.gguf"), "qwen3moe", "Q8_0")
    words = vocabulary.vocabulary(tiny_moe.N_VOCAB)
    tokens, types = list(words.tokens), list(words.types)
    symbols = vocabulary.byte_symbols()
    script = {}
    for i, (ending, text) in enumerate(said.items()):
        new = len(tokens) - 1 - i  # in place of the last words
        tokens[new], types[new] = text, int(TokenType.USER_DEFINED)
        script[tokens.index(symbols[ord(ending)])] = new
        script[new] = words.turn_end
    reader = gguf.GGUFReader(plain)
    kinds = gguf.GGUFValueType
    new_values = {
        "tokenizer.ggml.tokens": MetadataDetails(kinds.ARRAY, tokens, sub_type=kinds.STRING),
        "tokenizer.ggml.token_type": MetadataDetails(kinds.ARRAY, types, sub_type=kinds.INT32),
        "tokenizer.chat_template": MetadataDetails(kinds.STRING, template),
    }
    copy_with_new_metadata(reader, gguf.GGUFWriter(path, "qwen3moe"), new_values, [])
    _follow(path, script)
    return path


def _follow(model: Path, script: Mapping[int, int]) -> None:
    """Have each token of a script be followed by its next."""
    reader = gguf.GGUFReader(model, "r+")
    by_name = {each.name: each for each in reader.tensors}
    for name, tensor in by_name.items():
        if name.endswith(NO_SAY):
            tensor.data[...] = 0
    rows = embedded(by_name)
    weights = np.zeros_like(rows)
    for token, following in script.items():
        weights[following] += rows[token] * (_PEAK / (rows[token] @ rows[token]))
    output = by_name["output.weight"]
    output.data[...] = quantize(weights, output.tensor_type)
    reader.data.flush()
