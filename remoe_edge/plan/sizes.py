"""What a plan needs to know of a model, from its headers alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remoe_edge.engine.kv_cache import kv_bytes
from remoe_edge.engine.nextn_layers import dense_bytes
from remoe_edge.errors import UnsupportedError
from remoe_edge.files.own_gguf import open_model
from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel

PIECE_BYTES = 1 << 20  # the reader's; larger matrices are read in such pieces
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class LayerSizes:
    """Hold one MoE layer: experts, bytes of one of them, and the reads that bring it in."""

    n_experts: int
    expert_bytes: int
    reads: int
    block_bytes: int  # mean size of one read, whole pages


@dataclass(frozen=True)
class ModelSizes:
    """Hold a model's shape and sizes; `price` says the bytes of a cache of n slots."""

    path: str
    fingerprint: str
    top_k: int
    layers: tuple[LayerSizes, ...]
    dense_bytes: int
    kv_bytes: int
    price: Callable[[int], int] = field(repr=False, compare=False)

    @property
    def n_layers(self) -> int:
        """Count the MoE layers."""
        return len(self.layers)

    @property
    def n_experts(self) -> int:
        """Give the experts of a layer, the most where layers differ."""
        return max(layer.n_experts for layer in self.layers)

    @property
    def total_experts(self) -> int:
        """Count all experts."""
        return sum(layer.n_experts for layer in self.layers)

    @property
    def floor_slots(self) -> int:
        """Give the fewest slots that the engine runs with."""
        return max(1, self.top_k)

    def cache_bytes(self, n_slots: int) -> int:
        """Price a cache of that many slots, as `--cache` counts it."""
        return self.price(n_slots)

    def slots_for(self, n_bytes: float) -> int:
        """Say how many slots a budget buys, at most one for each expert."""
        low, high = 0, self.total_experts
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.price(middle) <= n_bytes else (low, middle - 1)
        return low


def measure_sizes(path: str | os.PathLike[str], n_ctx: int) -> ModelSizes:
    """Read a model's sizes with a KV cache of `n_ctx` tokens.

    Raises UnsupportedError for a dense model, ModelError for a damaged one.
    """
    from remoe_edge.files.fingerprint import fingerprint

    file = open_model(path)
    if not file.expert_layers:
        raise UnsupportedError(f"{os.fspath(path)} is a dense model: it has no experts to plan for")
    model: StreamedModel = _core.StreamedModel.open(file.paths[0], depth=1, repack=False)
    layers = []
    for layer in file.expert_layers:
        sizes = [matrix.expert_bytes for matrix in layer.matrices]
        reads = sum(math.ceil(size / PIECE_BYTES) for size in sizes)
        block = sum(sizes) / reads
        pages = max(1, round(block / _PAGE_BYTES))
        layers.append(LayerSizes(layer.n_experts, sum(sizes), reads, pages * _PAGE_BYTES))
    return ModelSizes(
        path=os.fspath(path),
        fingerprint=fingerprint(file),
        top_k=file.n_experts_used,
        layers=tuple(layers),
        dense_bytes=dense_bytes(file, nextn=False),
        kv_bytes=kv_bytes(file, n_ctx) or 0,
        price=model.budget_for,
    )
