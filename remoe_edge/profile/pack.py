"""Weights and links as the bytes of a profile, which is how the policy's own code takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.native import _core
from remoe_edge.profile.logistic import Floats

Links = tuple[Floats, npt.NDArray[np.int8]]  # scales, and links in steps of them
Weights = npt.NDArray[Any]

NO_LINKS: Links = np.zeros(0, np.float32), np.zeros(0, np.int8)


def pack(
    shares: Sequence[float],
    weights: Weights,
    links: Links = NO_LINKS,
    meta: Mapping[str, Any] | None = None,
    *,
    n_layers: int = 0,
    n_experts: int = 0,
    fingerprint: str = "",
) -> bytes:
    """Make a profile; 0 layers of 0 experts fit any model, and go without links.

    `weights`: [share, column], or [column] for one share.
    """
    return bytes(
        _core.make_profile(
            n_layers, n_experts, fingerprint, json.dumps(meta or {}),
            np.asarray(shares, np.float32), np.asarray(weights, np.float32), *links,
        )
    )  # fmt: skip
