"""A tiny dense model: a tiny Mixture-of-Experts one whose first expert is all there is."""

from __future__ import annotations

from pathlib import Path

import gguf

import tiny_moe


def make(path: Path, **sizes: int) -> Path:
    """Write a dense `llama` GGUF, F16, and return its path."""
    source = gguf.GGUFReader(tiny_moe.make(path.with_suffix(".moe.gguf"), "llama", "F16", **sizes))
    writer = gguf.GGUFWriter(path, "llama")
    for field in source.fields.values():
        skipped = field.name.startswith("GGUF.") or field.name == "general.architecture"
        if skipped or ".expert" in field.name:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in source.tensors:
        if "ffn_gate_inp" in tensor.name:
            continue
        data = tensor.data[0] if "_exps" in tensor.name else tensor.data
        writer.add_tensor(tensor.name.replace("_exps", ""), data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
