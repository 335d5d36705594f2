"""Count what a cache would have missed: recorded routing through the engine's own cache and policies.

Totals for several policies and sizes are `simulate`'s; here are the misses of each event, for whoever
needs them by layer, by token or for intervals of confidence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import BudgetError, InputError
from remoe_edge.native import _core
from remoe_edge.routing.trace import Trace, from_routed

Missed = npt.NDArray[np.int32]


def check_slots(n_slots: int, top_k: int) -> None:
    """Raise BudgetError where a cache is too small for one token of one layer."""
    if n_slots < top_k:
        raise BudgetError(
            f"{n_slots} slots hold no token's {top_k} experts of a layer: the engine would not start"
        )


def misses_by_event(
    trace: Trace, n_slots: int, policy: str, profile: bytes | None = None
) -> Missed:
    """Replay a trace from an empty cache and return the misses of every event, [n_events].

    A step with more experts than slots comes in waves, as in the engine. Raises BudgetError where
    there are fewer slots than one token needs, InputError for an unknown policy.
    """
    check_slots(n_slots, trace.top_k)
    return _core.replay_misses(
        trace.columns(), trace.n_layers, trace.n_experts, n_slots, policy, profile
    )


def misses_by_token(routed: npt.NDArray[np.integer], n_slots: int, policy: str) -> Missed:
    """Replay `routed` [layers, tokens, k], token by token; return the misses of each, [tokens].

    All k experts of one layer and token are one event: resident together, and none of them a victim
    while it lasts. Raises InputError as `from_routed` does, otherwise as `misses_by_event`.
    """
    if routed.ndim != 3:
        raise InputError(f"routing must be [layer, token, k], not {routed.shape}")
    n_layers, n_tokens, _ = routed.shape
    if n_tokens == 0:
        return np.zeros(0, np.int32)
    trace = from_routed(routed, int(routed.max(initial=0)) + 1)
    missed = misses_by_event(trace, n_slots, policy)
    return np.asarray(missed.reshape(n_tokens, n_layers).sum(1), np.int32)
