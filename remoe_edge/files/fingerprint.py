"""Identify a model whatever its routers, so that an overlay finds its base and no other."""

from __future__ import annotations

import hashlib

from remoe_edge.files.router_tensors import is_router
from remoe_edge.files.tensor_values import read_range
from remoe_edge.native import _core

_PIECE_BYTES = 4096


def fingerprint(model: _core.ModelFile) -> str:
    """Return SHA-256, in hex, over what a model is apart from its routers' values.

    That is the architecture, the sorted names, types and shapes of all tensors, and the first and
    last 4 KiB of every tensor that is no router. So a base and its tuned sibling agree, split or
    not, and reading a few MiB suffices for a file of any size.
    """
    digest = hashlib.sha256()

    def add(text: str) -> None:
        encoded = text.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)

    add(model.architecture)
    paths = model.paths
    for tensor in sorted(model.tensors, key=lambda tensor: tensor.name):
        add(f"{tensor.name} {tensor.type} {tensor.shape}")
        if is_router(tensor.name):
            continue
        n_bytes = min(_PIECE_BYTES, tensor.n_bytes)
        end = tensor.offset + tensor.n_bytes
        digest.update(read_range(paths[tensor.shard], tensor.offset, n_bytes))
        digest.update(read_range(paths[tensor.shard], end - n_bytes, n_bytes))
    return digest.hexdigest()
