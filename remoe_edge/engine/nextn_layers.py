"""What a file has of layers behind the others, which predict further tokens (MTP), from its header alone.

llama.cpp loads them only where it is asked to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from remoe_edge.files.trunk import trunk_blocks

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile

_BLOCK = re.compile(r"blk\.(\d+)\.")


def n_layers_run(file: ModelFile) -> int:
    """Count the layers with experts that every token runs through."""
    end = trunk_blocks(file) or 0
    return sum(layer.block < end for layer in file.expert_layers)


def dense_bytes(file: ModelFile, *, nextn: bool) -> int:
    """Sum up the weights that are no experts'; those of such layers only with `nextn`."""
    n_nextn = 0 if nextn else file.unsigned(f"{file.architecture}.nextn_predict_layers") or 0
    if not n_nextn:
        return file.dense_bytes
    end = trunk_blocks(file) or 0
    experts = {matrix.tensor for layer in file.expert_layers for matrix in layer.matrices}
    left_out = 0
    for index, tensor in enumerate(file.tensors):
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) >= end and index not in experts:
            left_out += tensor.n_bytes
    return file.dense_bytes - left_out
