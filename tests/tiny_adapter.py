"""LoRA adapters with random values, for one tensor of a model.

first = write(tmp_path / "lora.gguf", model, "blk.0.attn_q.weight")
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

RANK = 4


def write(path: Path, model: Path, tensor: str, *, spread: float = 0.1) -> Path:
    """Write an adapter of `tensor`, an expert tensor's too, and return `path`."""
    reader = GGUFReader(model)
    (shape,) = [each.shape for each in reader.tensors if each.name == tensor]
    n_in, n_out, *experts = map(int, shape)
    writer = GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    draw = np.random.default_rng(1)
    for part, sides in (("a", (RANK, n_in)), ("b", (n_out, RANK))):
        values = draw.normal(0, spread, (*experts, *sides)).astype(np.float32)
        writer.add_tensor(f"{tensor}.lora_{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
