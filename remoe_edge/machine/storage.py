"""How fast a file's storage answers random reads, and what the engine would make of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from remoe_edge.native import _core

MIB = 1 << 20


@dataclass(frozen=True)
class ProbePoint:
    """Throughput of random reads of one size with one number of them in flight."""

    block_bytes: int
    depth: int
    n_reads: int
    seconds: float

    @property
    def mib_per_s(self) -> float:
        """Throughput, MiB/s."""
        return self.n_reads * self.block_bytes / MIB / self.seconds

    @property
    def iops(self) -> float:
        """Reads per second."""
        return self.n_reads / self.seconds


@dataclass(frozen=True)
class StorageProbe:
    """A file's curve of block size against depth; `pick` is what the engine would use."""

    path: str
    backend: str
    direct: bool
    notes: tuple[str, ...]
    points: tuple[ProbePoint, ...]
    pick: ProbePoint

    def as_json(self) -> dict[str, Any]:
        """Return plain values: bytes, seconds, MiB/s and reads per second."""

        def row(point: ProbePoint) -> dict[str, Any]:
            return {**asdict(point), "mib_per_s": point.mib_per_s, "iops": point.iops}

        return {
            "path": self.path,
            "backend": self.backend,
            "direct": self.direct,
            "notes": list(self.notes),
            "points": [row(point) for point in self.points],
            "pick": row(self.pick),
        }


def probe(
    path: str | os.PathLike[str],
    seconds: float = 2.0,
    *,
    backend: str = "auto",
    direct: bool = True,
    wanted_bytes: int = MIB,
    block_bytes: Sequence[int] = (),
    depths: Sequence[int] = (),
) -> StorageProbe:
    """Measure random reads of a regular file of at least 64 KiB, for about `seconds`.

    The pick is the smallest depth within 5 % of the best throughput at the block size nearest to
    `wanted_bytes`. `block_bytes` (whole pages) and `depths` replace the usual grid. Points that
    would overrun the time on slow storage are left out. Raises InputError for a file that cannot be
    measured, ReadError from storage.
    """
    grid: dict[str, Any] = {
        name: list(values)
        for name, values in (("block_bytes", block_bytes), ("depths", depths))
        if values
    }
    raw = _core.probe(
        os.fspath(path),
        seconds=seconds,
        backend=backend,
        direct=direct,
        wanted_bytes=wanted_bytes,
        **grid,
    )
    return StorageProbe(
        path=os.fspath(path),
        backend=raw["backend"],
        direct=raw["direct"],
        notes=tuple(raw["notes"]),
        points=tuple(ProbePoint(**point) for point in raw["points"]),
        pick=ProbePoint(**raw["pick"]),
    )
