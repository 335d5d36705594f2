"""Fit a profile: sample, fit links, fit weights, choose by replays, search on, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from remoe_edge.native import _core
from remoe_edge.profile import links as link
from remoe_edge.profile.folds import cut_folds
from remoe_edge.profile.links import fit_links
from remoe_edge.profile.logistic import by_newton
from remoe_edge.profile.pack import NO_LINKS, pack
from remoe_edge.profile.replays import Trials
from remoe_edge.profile.samples import columns, labels, merged, pick, scores
from remoe_edge.profile.weights import choose, fit_weights
from remoe_edge.routing.trace import Trace

SHARES = (0.10, 0.25, 0.50)  # cache sizes that weights are chosen for


@dataclass
class Fitted:
    """Hold a fitted profile and, per trace and share, the part of the gap that it takes back.

    Judged on parts of the traces that chose neither horizon nor search, with links of the others; the
    weights that both start from were fitted to samples of the whole.
    """

    data: bytes
    gap_shares: list[dict[str, Any]]
    horizons: dict[float, int]
    searched: dict[float, bool]  # whether the search's weights were kept


def fit_profile(
    traces: Sequence[Trace],
    *,
    links: bool = True,
    epochs: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Fit weights, and links unless told not to, to traces of one model.

    Several traces of different texts are worth more than one long one: each is judged by links of
    the others. A single trace is cut in two. Raises InputError where the traces are of different
    models or too short.
    """
    folds = cut_folds(traces)
    rng = np.random.default_rng(seed)
    n_layers, n_experts = folds[0].n_layers, folds[0].n_experts
    names: list[str] = _core.feature_names()
    plain = [i for i, name in enumerate(names) if not name.startswith("link-")]

    progress("sampling")
    picks = [pick(fold, rng) for fold in folds]
    wanted = [labels(fold, each) for fold, each in zip(folds, picks, strict=True)]
    samples = [columns(fold, each, None) for fold, each in zip(folds, picks, strict=True)]
    fold_links, final_links = [NO_LINKS for _ in folds], NO_LINKS

    profile = partial(
        pack, n_layers=n_layers, n_experts=n_experts, fingerprint=folds[0].fingerprint
    )

    if links:
        weights = np.zeros(len(names), np.float32)
        weights[plain], bias = by_newton(
            np.concatenate(samples)[:, plain], merged(wanted)[link.HORIZON]
        )
        *fold_links, final_links = fit_links(
            folds, [scores(fold, weights) for fold in folds], bias, epochs, seed,
            lambda layer: progress(f"links of layer {layer + 1}/{n_layers}"),
        )  # fmt: skip
        nothing = np.zeros(len(names), np.float32)
        samples = [
            columns(fold, each, profile([1], nothing, held))
            for fold, each, held in zip(folds, picks, fold_links, strict=True)
        ]

    progress("weights")
    use = [name for name in names if links or not name.startswith("link-")]
    candidates = fit_weights(np.concatenate(samples), merged(wanted), use)
    trials = Trials(folds, fold_links, profile)
    choices = {share: choose(trials, share, candidates, rng, progress) for share in SHARES}
    meta = {
        "model": folds[0].meta.get("model"),
        "traces": [Path(trace.path).name for trace in traces],
        "tokens": sum(fold.total_tokens for fold in folds),
        "with_probabilities": all(fold.has_probs() for fold in folds),
        "horizons": {str(share): choice.horizon for share, choice in choices.items()},
        "searched": {str(share): choice.searched for share, choice in choices.items()},
    }
    return Fitted(
        profile(SHARES, np.stack([choices[share].weights for share in SHARES]), final_links, meta),
        [
            {"trace": fold.path, "cache_share": share, "gap_share": taken}
            for share, choice in choices.items()
            for fold, taken in zip(folds, choice.taken, strict=True)
        ],
        {share: choice.horizon for share, choice in choices.items()},
        {share: choice.searched for share, choice in choices.items()},
    )
