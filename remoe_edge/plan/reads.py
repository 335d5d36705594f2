"""How long reads take: the storage probe's curve, looked up at the engine's block size and depth."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.machine.storage import ProbePoint, probe
from remoe_edge.plan.sizes import ModelSizes

PROBE_DEPTHS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ReadModel:
    """Hold throughput by block size and reads in flight; `scale` stretches all times.

    The scale is what the engine's own reads took, computing beside them, over what the probe of an
    idle machine says of the same reads.
    """

    points: tuple[ProbePoint, ...]
    depth: int
    scale: float = 1.0

    def bytes_per_s(self, block_bytes: int, in_flight: float) -> float:
        """Interpolate the throughput, in logarithms; beyond what was measured the edge holds."""
        blocks = sorted({point.block_bytes for point in self.points})
        rates = [self._at_depth(block, in_flight) for block in blocks]
        return math.exp(_between([math.log(b) for b in blocks], rates, math.log(block_bytes)))

    def _at_depth(self, block: int, in_flight: float) -> float:
        mine = sorted((p for p in self.points if p.block_bytes == block), key=lambda p: p.depth)
        rates = [math.log(p.n_reads * p.block_bytes / p.seconds) for p in mine]
        return _between([math.log(p.depth) for p in mine], rates, math.log(max(1.0, in_flight)))

    def seconds(self, n_reads: float, block_bytes: int) -> float:
        """Estimate the time of reads that are submitted at once, fractions of a read included."""
        if n_reads <= 0:
            return 0.0
        rate = self.bytes_per_s(block_bytes, min(self.depth, n_reads))
        return self.scale * n_reads * block_bytes / rate


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    if x <= xs[0]:
        return ys[0]
    for i in range(1, len(xs)):
        if x <= xs[i]:
            share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            return ys[i - 1] + share * (ys[i] - ys[i - 1])
    return ys[-1]


def measure_reads(
    path: str | os.PathLike[str],
    sizes: ModelSizes,
    *,
    depth: int,
    backend: str = "auto",
    direct: bool = True,
    seconds: float = 1.0,
) -> ReadModel:
    """Probe a model's file at its own block sizes, for about `seconds`.

    Raises InputError for a file too short to measure, ReadError from storage.
    """
    blocks = sorted({layer.block_bytes for layer in sizes.layers})
    # A file that mixes formats has few sizes, and what lies between two is interpolated.
    blocks = blocks if len(blocks) <= 2 else [blocks[0], blocks[-1]]
    found = probe(
        path, seconds, backend=backend, direct=direct, wanted_bytes=blocks[-1],
        block_bytes=blocks, depths=PROBE_DEPTHS,
    )  # fmt: skip
    return ReadModel(found.points, depth)


def as_dict(reads: ReadModel) -> dict[str, Any]:
    """Write the curve as plain values."""
    points = [[p.block_bytes, p.depth, p.n_reads, p.seconds] for p in reads.points]
    return {"depth": reads.depth, "scale": reads.scale, "points": points}


def from_dict(record: dict[str, Any]) -> ReadModel:
    """Read what `as_dict` wrote. Raises InputError where it is something else."""
    try:
        points = tuple(
            ProbePoint(int(block), int(depth), int(n), float(seconds))
            for block, depth, n, seconds in record["points"]
        )
        made = ReadModel(points, int(record["depth"]), float(record["scale"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a curve of reads: {error!r}") from error
    if not points or min(p.seconds for p in points) <= 0 or made.depth < 1 or made.scale <= 0:
        raise InputError("not a curve of reads: no points, or times and depths below zero")
    return made
