"""Tell a model that computes nonsense from one that answers: logits that are no numbers.

NaN or infinity in weights, in an activation or in the KV cache reaches the logits, and a sampler then
takes the first token for ever.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import ModelError


def require_finite(logits: npt.NDArray[np.float32], n_tokens: int, model: object) -> None:
    """Raise ModelError where logits [n_vocab] hold NaN or +infinity.

    -infinity alone is how llama.cpp suppresses a token. n_tokens: how
    many tokens the model has read, for the message.
    """
    if math.isfinite(logits.dot(logits)):  # nearly always, and the cheapest way to know
        return
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(logits.sum())
    if np.isfinite(total) or (total == -np.inf and bool((logits > -np.inf).any())):
        return
    raise ModelError(
        f"{model}: the logits after {n_tokens} tokens are not finite: its weights, or what it has "
        "computed from them, hold NaN or infinity; check the file against its source"
    )
