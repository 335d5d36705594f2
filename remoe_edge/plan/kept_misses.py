"""Misses that an earlier plan replayed from a trace, kept so that `--cache plan:…` needs no trace."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError, RemoeError
from remoe_edge.files.atomic import write_text
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.plan.misses import Chances, Replayed
from remoe_edge.plan.sizes import ModelSizes


@dataclass(frozen=True)
class KeptMisses:
    """Hold chances at some sizes, and interpolate between them."""

    kept_source: str
    slots: npt.NDArray[np.int64]
    table: npt.NDArray[np.float64]  # [sizes, layers, top_k + 1]

    @property
    def source(self) -> str:
        """Name the trace that they came from."""
        return f"{self.kept_source}, replayed by an earlier plan"

    def chances(self, n_slots: int) -> Chances:
        """Give the chances of each number of misses; see `MissModel`."""
        high = min(int(np.searchsorted(self.slots, n_slots)), len(self.slots) - 1)
        low = max(0, high - 1)
        span = float(self.slots[high] - self.slots[low])
        share = (n_slots - float(self.slots[low])) / span if span > 0 else 1.0
        share = min(1.0, max(0.0, share))
        return np.asarray((1 - share) * self.table[low] + share * self.table[high])


def _path(folder: Path, sizes: ModelSizes, policy: str) -> Path:
    digest = hashlib.sha256(f"{sizes.fingerprint} {policy}".encode()).hexdigest()
    return folder / f"misses-{digest[:32]}.json"


def keep(folder: Path, sizes: ModelSizes, misses: Replayed) -> None:
    """Write what a trace gave, with every expert resident added: nothing is missing then.

    Raises ReadError where the folder cannot be written.
    """
    known = dict(sorted(misses.known.items()))
    nothing = np.zeros((sizes.n_layers, sizes.top_k + 1))
    nothing[:, 0] = 1
    known[sizes.total_experts] = nothing
    record = {
        "source": misses.source,
        "slots": list(known),
        "chances": [np.round(chances, 6).tolist() for chances in known.values()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(record) + "\n", _path(folder, sizes, policy=misses.policy))


def recall(folder: Path, sizes: ModelSizes, policy: str) -> KeptMisses | None:
    """Read what `keep` wrote for this model and policy; None where there is none, or it is damaged."""
    try:
        with open_regular(_path(folder, sizes, policy), "misses") as file:
            held = json_object(file.read())
        slots = np.asarray(held["slots"], np.int64)
        table = np.asarray(held["chances"], np.float64)
        if table.shape != (len(slots), sizes.n_layers, sizes.top_k + 1) or len(slots) < 2:
            raise InputError("not a table of misses")
        # A NaN fails the comparisons.
        if (np.diff(slots) <= 0).any() or not ((table >= 0) & (table <= 1)).all():
            raise InputError("not a table of misses")
        return KeptMisses(str(held["source"]), slots, table)
    except (OSError, ValueError, KeyError, TypeError, RemoeError):
        return None
