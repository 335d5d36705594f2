"""What a drive's speed means for a token: the time of its reads, by published misses."""

from __future__ import annotations

import os
from dataclasses import dataclass

from remoe_edge.errors import RemoeError
from remoe_edge.native import _core
from remoe_edge.plan.misses import PUBLISHED, Published, mean_misses

_SHARES = (0.25, 0.5)


@dataclass(frozen=True)
class ReadingTime:
    """Hold a share of the experts in memory, and the reads of a token then: bytes and milliseconds."""

    share: float
    bytes_per_token: float
    ms: float


def reading_times(path: str | os.PathLike[str], bytes_per_s: float) -> list[ReadingTime]:
    """Estimate a token's reads at some cache sizes; nothing for what is no model with experts.

    Computing comes on top, less what overlaps. Misses are published figures of another model.
    """
    if not os.path.isfile(path):
        return []
    try:
        file = _core.ModelFile.open(os.fspath(path))
    except RemoeError:
        return []
    layers, top_k = file.expert_layers, file.n_experts_used
    total = sum(layer.n_experts for layer in layers)
    if not total or not top_k:
        return []
    one = file.expert_bytes / total
    misses = Published(len(layers), top_k, total)
    found = []
    for share in _SHARES:
        n_bytes = mean_misses(misses.chances(round(share * total))) * one
        found.append(ReadingTime(share, n_bytes, 1000 * n_bytes / bytes_per_s))
    return found


def line(times: list[ReadingTime]) -> str:
    """Write them in one line."""
    told = ", ".join(f"{each.ms:.0f} ms with {each.share:.0%} of the experts" for each in times)
    return f"reading for a token of this model: {told} in memory (misses as of {PUBLISHED})"
