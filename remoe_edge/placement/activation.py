"""The activation matrix s̃[layer, expert]: the share of a layer's choices that each expert will get.

Remoe's first stage. `SimilarPrompts.predict` (remoe_edge.predict) gives one for a prompt; without
past prompts a recording gives the shares of a whole text (`predict.store.activation`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError

Floats = npt.NDArray[np.float64]
_ROUNDING = 0.02  # a layer's shares may be this far from 1: past prompts keep halves


def activation_matrix(shares: npt.ArrayLike, n_layers: int, n_experts: int) -> Floats:
    """Check shares [layers, experts] and make each layer's sum 1.

    Raises InputError for another shape, what is no share, or a layer that does not add up.
    """
    try:
        found = np.asarray(shares, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"an activation matrix holds numbers: {error}") from error
    if found.shape != (n_layers, n_experts):
        raise InputError(
            f"an activation matrix of {found.shape} for {n_layers} layers of {n_experts} experts"
        )
    sums = found.sum(1)
    sound = (found >= 0).all(1) & (np.abs(sums - 1) <= _ROUNDING)  # a NaN fails both
    for layer in np.flatnonzero(~sound):
        raise InputError(f"layer {layer} of the activation matrix is no share of every expert")
    return np.asarray(found / sums[:, None])


def even(n_layers: int, n_experts: int) -> Floats:
    """Give every expert the same share: what is known without any past."""
    return np.full((n_layers, n_experts), 1 / n_experts)
