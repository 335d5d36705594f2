"""Which functions a prompt wakes: those that it is expected to ask often enough.

Similar prompts (SPS) predict the share s̃ of each expert. A token asks a function for K·Σ s̃ rows, summed
over the function's experts; an answer of n tokens n times that. A function that is expected to be asked
for less than `least_rows` stays as it is: its experts come from storage, should they be needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from remoe_edge.deploy.packing import Function

LEAST_ROWS = 1.0


def expected_rows(
    functions: Sequence[Function], shares: npt.NDArray[np.floating] | None, top_k: int
) -> dict[str, float]:
    """Expect the rows that a token asks of each function.

    shares: predicted, [layers, experts]; without them, what the plan expects.
    """
    if shares is None:
        return {each.name: each.rows for each in functions}
    flat = np.minimum(1.0, top_k * np.asarray(shares, np.float64)).reshape(-1)
    return {each.name: float(flat[list(each.experts)].sum()) for each in functions}


def woken(rows: dict[str, float], n_tokens: int, least_rows: float = LEAST_ROWS) -> list[str]:
    """Name the functions to wake for an answer of so many tokens, the one asked most first."""
    asked = [name for name, each in rows.items() if n_tokens * each >= least_rows]
    return sorted(asked, key=lambda name: (-rows[name], name))
