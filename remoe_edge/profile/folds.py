"""How traces are cut for fitting: into folds, sessions from cold, and windows to replay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from remoe_edge.errors import InputError
from remoe_edge.routing.trace import Trace

MIN_TOKENS = 200
SESSION_STEPS = 1500  # an engine starts cold, so what is fitted to does too, every so many steps


def cut_folds(traces: Sequence[Trace]) -> list[Trace]:
    """Take each trace as a fold, token by token, and a single one as two halves.

    Raises InputError where the traces are of different models or too short.
    """
    if not traces:
        raise InputError("no trace to fit to")
    first = traces[0]
    for trace in traces:
        shape = (trace.n_layers, trace.n_experts, trace.top_k)
        if shape != (first.n_layers, first.n_experts, first.top_k) or (
            trace.fingerprint and first.fingerprint and trace.fingerprint != first.fingerprint
        ):
            raise InputError(f"{trace.path} and {first.path} are traces of different models")
    folds = [trace.per_token() for trace in traces]
    if len(folds) == 1:
        half = folds[0].total_tokens // 2
        folds = [folds[0].tokens(0, half), folds[0].tokens(half, 2 * half)]
    for fold in folds:
        if fold.total_tokens < MIN_TOKENS:
            raise InputError(
                f"{fold.path}: {fold.total_tokens} tokens to fit to, {MIN_TOKENS} is the least"
            )
    return folds


def sessions(fold: Trace) -> list[Trace]:
    """Cut a fold where an engine is taken to have started anew."""
    count = max(1, fold.total_tokens // SESSION_STEPS)
    cuts = np.linspace(0, fold.total_tokens, count + 1).astype(int)
    return [fold.tokens(int(a), int(b)) for a, b in pairwise(cuts)]
