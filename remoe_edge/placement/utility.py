"""The utility of keeping an expert local (Remoe's u), and the split that it gives.

    u = N_in·s̃ + N_out·K·s̃

with s̃ the share of the layer's choices, N_in and N_out the tokens of prompt and answer, K = top-k.
A prompt's tokens weigh less than an answer's, since a whole prompt goes through a layer at once. Where
prompt and answer are predicted apart, each term has its own s̃; with one s̃ the order is that of s̃.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.placement.activation import Floats
from remoe_edge.placement.request import Workload

Mask = npt.NDArray[np.bool_]


def utility(answer: Floats, workload: Workload, top_k: int, prompt: Floats | None = None) -> Floats:
    """Rate every expert, [layers, experts], from predicted shares of the answer and the prompt."""
    before = answer if prompt is None else prompt
    return workload.n_prompt * before + workload.n_answer * top_k * answer


def split(rated: Floats, n_local: int) -> Mask:
    """Keep the `n_local` most useful experts of every layer local; the rest go remote.

    Of equals the lower number stays. Raises InputError for more experts than a layer has.
    """
    n_experts = rated.shape[1]
    if not 0 <= n_local <= n_experts:
        raise InputError(f"{n_local} local experts of {n_experts}")
    order = np.argsort(-rated, axis=1, kind="stable")
    local = np.zeros(rated.shape, np.bool_)
    np.put_along_axis(local, order[:, :n_local], True, axis=1)
    return local
