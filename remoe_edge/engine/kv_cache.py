"""How much memory a context takes, from a model's header alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile

_VALUE_BYTES = 2  # F16
_PROJECTION = re.compile(r"blk\.\d+\.attn_[kv]\.weight")  # of hybrid models: keys, values


def kv_bytes(file: ModelFile, n_tokens: int) -> int | None:
    """Compute the KV cache of F16 values, windows and all, as llama.cpp reserves it; None if unknown.

    Where some layers have no attention, what the others keep shows in their projections.
    """
    arch = file.architecture
    recurrent = (f"{arch}.ssm.", f"{arch}.shortconv.", f"{arch}.full_attention_interval")
    if any(name.startswith(recurrent) for name in file.key_names):
        rows = [tensor.shape[1] for tensor in file.tensors if _PROJECTION.fullmatch(tensor.name)]
        return sum(rows) * _VALUE_BYTES * n_tokens or None

    def key(name: str) -> int | None:
        return file.unsigned(f"{arch}.{name}")

    n_layers, n_heads = key("block_count"), key("attention.head_count")
    n_embd = key("embedding_length")
    per_head = n_embd // n_heads if n_embd and n_heads else None
    key_length = key("attention.key_length") or per_head
    value_length = key("attention.value_length") or per_head
    heads = file.unsigned_array(f"{arch}.attention.head_count_kv")
    if heads is None and n_layers:
        each = key("attention.head_count_kv") or n_heads
        heads = [each] * n_layers if each else None
    if heads is None or key_length is None or value_length is None:
        return None
    if key("attention.key_length_mla"):
        value_length = 0  # values are read out of the compressed keys
    return sum(heads) * (key_length + value_length) * _VALUE_BYTES * n_tokens
