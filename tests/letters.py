"""Tiny models that recite letters: a greedy answer is known, shows, and ends at its bound alone.

A random model may end at once, or say blanks, and which of them it does depends on how a processor
rounds. Here the likeliest token follows from the one before it, by far: batches, kernels and what is
still in the KV cache change no greedy answer. The experts are read and computed as ever.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

import tiny_moe
from random_moe import vocabulary

_PEAK = 4.0  # the logit of the likeliest: with a temperature, others are chosen as well
_STEP = 5
NO_SAY = ("attn_output.weight", "ffn_down_exps.weight")


def letters() -> list[int]:
    """Give the tokens that are lower-case letters, in the order in which they are recited."""
    words = vocabulary.vocabulary(tiny_moe.N_VOCAB).tokens
    return [
        i for i, word in enumerate(words) if word.isascii() and word.isalpha() and word.islower()
    ]


def follows(token: int) -> int:
    """Give the token that the model says after another one."""
    known = letters()
    at = known.index(token) + 1 if token in known else token * _STEP
    return known[at % len(known)]


def recite(model: Path) -> Path:
    """Have a tiny model recite, in place."""
    reader = gguf.GGUFReader(model, "r+")
    by_name = {each.name: each for each in reader.tensors}
    for name, tensor in by_name.items():
        if name.endswith(NO_SAY):
            tensor.data[...] = 0
    output, format_ = by_name["output.weight"], by_name["output.weight"].tensor_type
    rows = embedded(by_name)
    weights = np.zeros_like(rows)
    for token in range(len(rows)):
        weights[follows(token)] += rows[token] * (_PEAK / (rows[token] @ rows[token]))
    output.data[...] = quantize(weights, format_)
    logits = rows @ dequantize(output.data, format_).T
    assert [follows(token) for token in range(len(rows))] == logits.argmax(1).tolist()
    top = np.sort(logits, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 0.1
    reader.data.flush()
    return model


def embedded(by_name: dict[str, gguf.ReaderTensor]) -> np.ndarray:
    """Give what the last layer hands on after each token, where the layers add nothing."""
    rows = dequantize(by_name["token_embd.weight"].data, by_name["token_embd.weight"].tensor_type)
    rows = rows / np.sqrt((rows**2).mean(1, keepdims=True))
    found: np.ndarray = rows * by_name["output_norm.weight"].data
    return found
