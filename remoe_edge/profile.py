"""Fit the reuse-biased policy to a model's traces, and keep the result in a small file.

What is fitted, and on what, is told in docs/policies.md. In short: links (how an expert's use
follows from the experts just chosen) by logistic regression per layer, and then one weight per
column of the score, with every trace judged by links that were fitted on the other traces, so that
a link is trusted only as far as it carries over. The columns come from the policy's own code.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge import _core
from remoe_edge.errors import InputError
from remoe_edge.trace import Trace

Floats = npt.NDArray[np.float32]
Links = tuple[Floats, npt.NDArray[np.int8]]  # scales, and links in steps of them

SHARES = (0.10, 0.25, 0.50)  # cache sizes that weights are chosen for
HORIZONS = (1, 2, 4, 8, 16, 32)  # steps within which a use counts as soon
LINK_HORIZON = 4
CONTEXTS = 5  # of links: chosen now, lately (two averages), by the two layers before
FADES = (0.75, 0.97)  # of the two averages, as in the policy
SMALL = np.float32(1e-6)  # what an average may lose of it
MIN_TOKENS = 200
SESSION_STEPS = 1500  # an engine starts cold, so what is fitted to does too, every so many steps
SAMPLES_PER_FOLD = 1500
WARM_STEPS = 100
REPLAYS_PER_FOLD = 2


@dataclass
class Fitted:
    """Hold a fitted profile and, per trace and share, the part of the gap that it takes back."""

    data: bytes
    gap_shares: list[dict[str, Any]]
    horizons: dict[float, int]


def read_profile(path: str | Path) -> bytes:
    """Read a profile and check it. Raises InputError if unreadable, ModelError if damaged."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the profile {path}: {error.strerror}") from error
    _core.parse_profile(data, str(path))
    return data


def save_profile(data: bytes, path: str | Path) -> None:
    """Write a profile so that a reader finds the old file or the whole new one, never a part."""
    path = Path(path)
    try:
        handle, part = tempfile.mkstemp(dir=path.parent or ".", prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(part, 0o666 & ~umask)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise InputError(f"cannot write the profile {path}: {error.strerror}") from error


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
    folds = _folds(traces)
    rng = np.random.default_rng(seed)
    n_layers, n_experts = folds[0].n_layers, folds[0].n_experts
    names: list[str] = _core.feature_names()
    plain = [i for i, name in enumerate(names) if not name.startswith("link-")]

    progress("sampling")
    picks = [_pick(fold, rng) for fold in folds]
    labels = [_labels(fold, pick) for fold, pick in zip(folds, picks, strict=True)]
    samples = [_samples(fold, pick, None) for fold, pick in zip(folds, picks, strict=True)]
    base, bias = _logistic(
        np.concatenate(samples)[:, plain], np.concatenate([row[LINK_HORIZON] for row in labels])
    )
    empty = np.zeros(0, np.float32), np.zeros(0, np.int8)
    fold_links: list[Links] = [empty for _ in folds]
    final_links = empty
    if links:
        weights = np.zeros(len(names), np.float32)
        weights[plain] = base
        scores = [_scores(fold, weights) for fold in folds]
        *fold_links, final_links = _fit_links(
            folds, scores, bias, epochs, seed,
            lambda layer: progress(f"links of layer {layer + 1}/{n_layers}"),
        )  # fmt: skip
        del scores

    def profile(
        shares: Sequence[float],
        weights: npt.NDArray[Any],
        held: Links,
        meta: dict[str, Any],
    ) -> bytes:
        return bytes(
            _core.make_profile(
                n_layers, n_experts, folds[0].fingerprint, json.dumps(meta),
                np.asarray(shares, np.float32), np.asarray(weights, np.float32), *held,
            )
        )  # fmt: skip

    progress("weights")
    use = list(range(len(names))) if links else plain
    if links:
        nothing = np.zeros(len(names), np.float32)
        samples = [
            _samples(fold, pick, profile([1], nothing, held, {}))
            for fold, pick, held in zip(folds, picks, fold_links, strict=True)
        ]
    candidates: dict[int, Floats] = {}
    for horizon in HORIZONS:
        weights = np.zeros(len(names), np.float32)
        weights[use], _ = _logistic(
            np.concatenate(samples)[:, use], np.concatenate([row[horizon] for row in labels])
        )
        candidates[horizon] = weights

    replays = [_replays(fold) for fold in folds]
    gap_shares: list[dict[str, Any]] = []
    horizons: dict[float, int] = {}
    for share in SHARES:
        n_slots = max(round(share * n_layers * n_experts), folds[0].top_k)
        best: tuple[float, int, list[float]] | None = None
        for horizon, weights in candidates.items():
            progress(f"replaying at {share:.0%}, horizon {horizon}")
            taken = []
            for fold_replays, held in zip(replays, fold_links, strict=True):
                data = profile([share], weights, held, {})
                taken.append(float(np.mean([one.gap_share(n_slots, data) for one in fold_replays])))
            if best is None or np.mean(taken) > best[0]:
                best = float(np.mean(taken)), horizon, taken
        assert best is not None
        horizons[share] = best[1]
        gap_shares += [
            {"trace": fold.path, "cache_share": share, "gap_share": taken}
            for fold, taken in zip(folds, best[2], strict=True)
        ]
    meta = {
        "model": folds[0].meta.get("model"),
        "traces": [Path(trace.path).name for trace in traces],
        "tokens": sum(fold.total_tokens for fold in folds),
        "with_probabilities": all(fold.has_probs() for fold in folds),
        "horizons": {str(share): horizon for share, horizon in horizons.items()},
    }
    chosen = np.stack([candidates[horizons[share]] for share in SHARES])
    return Fitted(profile(SHARES, chosen, final_links, meta), gap_shares, horizons)


def _folds(traces: Sequence[Trace]) -> list[Trace]:
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


def _sessions(fold: Trace) -> list[Trace]:
    count = max(1, fold.total_tokens // SESSION_STEPS)
    cuts = np.linspace(0, fold.total_tokens, count + 1).astype(int)
    return [fold.tokens(int(a), int(b)) for a, b in pairwise(cuts)]


def _pick(fold: Trace, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Choose events of each session to fit weights to."""
    picks = []
    sessions = _sessions(fold)
    for session in sessions:
        first = WARM_STEPS * session.n_layers
        last = session.n_events - max(HORIZONS) * session.n_layers
        count = min(SAMPLES_PER_FOLD // len(sessions), last - first)
        picks.append(np.sort(rng.choice(np.arange(first, last), count, replace=False)))
    return picks


def _samples(fold: Trace, picks: list[npt.NDArray[np.int64]], data: bytes | None) -> Floats:
    blocks = [
        np.asarray(
            _core.policy_columns(part.columns(), part.n_layers, part.n_experts, data, events)
        )
        for part, events in zip(_sessions(fold), picks, strict=True)
    ]
    return np.concatenate([block.reshape(-1, block.shape[2]) for block in blocks])


def _scores(fold: Trace, weights: Floats) -> Floats:
    """Give the scores of every token without links: [token, layer, expert]."""
    data = _core.make_profile(
        0, 0, "", "{}", np.ones(1, np.float32), weights, np.zeros(0, np.float32),
        np.zeros(0, np.int8),
    )  # fmt: skip
    return np.concatenate(
        [
            _core.policy_scores(part.columns(), part.n_layers, part.n_experts, data).reshape(
                -1, part.n_layers, part.n_experts
            )
            for part in _sessions(fold)
        ]
    )


def _used(fold: Trace, layer: int) -> npt.NDArray[np.bool_]:
    """Say which experts of a layer each token uses: [token, expert]."""
    chosen = fold.experts.reshape(-1, fold.n_layers, fold.top_k)[:, layer].astype(np.int64)
    used = np.zeros((len(chosen), fold.n_experts), np.bool_)
    np.put_along_axis(used, chosen, True, axis=1)
    return used


def _soon(used: npt.NDArray[np.bool_], horizon: int) -> npt.NDArray[np.bool_]:
    """Say which experts are used within `horizon` steps after each one."""
    soon = np.zeros_like(used)
    for step in range(1, horizon + 1):
        soon[:-step] |= used[step:]
    return soon


def _labels(fold: Trace, picks: list[npt.NDArray[np.int64]]) -> dict[int, npt.NDArray[np.bool_]]:
    blocks: dict[int, list[npt.NDArray[np.bool_]]] = {horizon: [] for horizon in HORIZONS}
    for part, events in zip(_sessions(fold), picks, strict=True):
        labels = {h: np.zeros((len(events), fold.n_experts), np.bool_) for h in HORIZONS}
        for layer in range(fold.n_layers):
            used = _used(part, layer)
            rows = np.flatnonzero(events % fold.n_layers == layer)
            for horizon in HORIZONS:
                labels[horizon][rows] = _soon(used, horizon)[events[rows] // fold.n_layers]
        for horizon in HORIZONS:
            blocks[horizon].append(labels[horizon].reshape(-1))
    return {horizon: np.concatenate(block) for horizon, block in blocks.items()}


def _logistic(
    columns: Floats, labels: npt.NDArray[np.bool_], ridge: float = 1e-4
) -> tuple[Floats, float]:
    """Fit a logistic regression by Newton's method. RETURNS weights in the columns' units, bias."""
    mean, spread = columns.mean(0, dtype=np.float64), columns.std(0, dtype=np.float64)
    live = spread > 1e-6
    inputs = ((columns[:, live] - mean[live]) / spread[live]).astype(np.float64)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    penalty = np.full(inputs.shape[1], ridge * len(inputs))
    penalty[-1] = 0
    weights = np.zeros(inputs.shape[1])
    share = min(max(float(labels.mean()), 1e-6), 1 - 1e-6)
    weights[-1] = np.log(share / (1 - share))
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        slope = inputs.T @ (chance - labels) + penalty * weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    fitted = np.zeros(columns.shape[1])
    fitted[live] = weights[:-1] / spread[live]
    return fitted.astype(np.float32), float(weights[-1] - fitted @ mean)


def _contexts(fold: Trace, layer: int) -> Floats:
    """Lay out what a layer's links start from: [token, CONTEXTS * n_experts]."""
    now = _used(fold, layer).astype(np.float32) / fold.top_k
    parts = [now]
    for fade in FADES:
        average = np.empty_like(now)
        held = np.zeros(fold.n_experts, np.float32)
        for token in range(len(now)):
            held = held * np.float32(fade) + np.float32(1 - fade) * now[token]
            # A processor takes a hundred times as long over numbers next to nothing.
            held[held < SMALL] = 0
            average[token] = held
        parts.append(average)
    for before in (1, 2):
        source = layer - before
        parts.append(
            _used(fold, source).astype(np.float32) / fold.top_k if source >= 0 else 0 * now
        )
    return np.concatenate(parts, axis=1)


def _fit_links(
    folds: Sequence[Trace],
    scores: Sequence[Floats],
    bias: float,
    epochs: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Links]:
    """Fit each layer's links to what the score without links leaves unexplained.

    RETURNS the links fitted to all traces but the first, all but the second ..., and to all: scales
    `[layer, context]` and links `[layer, context, from, to]`.
    """
    n_layers, n_experts, n = folds[0].n_layers, folds[0].n_experts, len(folds)
    kept = [*([i for i in range(n) if i != left] for left in range(n)), list(range(n))]
    fits = [
        (
            np.zeros((n_layers, CONTEXTS), np.float32),
            np.zeros((n_layers, CONTEXTS, n_experts, n_experts), np.int8),
        )
        for _ in kept
    ]
    for layer in range(n_layers):
        progress(layer)
        inputs = [_contexts(fold, layer) for fold in folds]
        offsets = [score[:, layer] + np.float32(bias) for score in scores]
        labels = [_soon(_used(fold, layer), LINK_HORIZON).astype(np.float32) for fold in folds]
        for (scales, links), mine in zip(fits, kept, strict=True):
            found = _adam(
                np.concatenate([inputs[i] for i in mine]),
                np.concatenate([offsets[i] for i in mine]),
                np.concatenate([labels[i] for i in mine]),
                epochs, seed,
            ).reshape(CONTEXTS, n_experts, n_experts)  # fmt: skip
            scales[layer] = np.abs(found).max(axis=(1, 2)) / 127
            step = np.where(scales[layer] > 0, scales[layer], 1)[:, None, None]
            links[layer] = np.clip(np.rint(found / step), -127, 127).astype(np.int8)
    return fits


def _adam(
    inputs: Floats,
    offset: Floats,
    labels: Floats,
    epochs: int,
    seed: int,
    *,
    batch: int = 500,
    rate: float = 0.02,
    decay: float = 1e-6,
) -> Floats:
    """Fit `labels ~ logistic(inputs @ W + offset)`, W pulled to 0, by Adam over batches."""
    rng = np.random.default_rng(seed)
    # Enough steps for a short trace too.
    count, batch = len(inputs), max(1, min(batch, len(inputs) // 12))
    weights = np.zeros((inputs.shape[1], labels.shape[1]), np.float32)
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    steps, done = epochs * (count // batch), 0
    for _ in range(epochs):
        order = rng.permutation(count)
        for at in range(0, count - batch + 1, batch):
            rows = order[at : at + batch]
            some = inputs[rows]
            error = 1 / (1 + np.exp(-(some @ weights + offset[rows]))) - labels[rows]
            slope = some.T @ error / np.float32(error.size) + np.float32(2 * decay) * weights
            done += 1
            first += np.float32(0.1) * (slope - first)
            second += np.float32(0.001) * (slope * slope - second)
            size = np.float32(rate * (1 - 0.9 * done / steps) / (1 - 0.9**done))
            root = np.sqrt(second / np.float32(1 - 0.999**done)) + np.float32(1e-8)
            weights -= size * first / root
    return weights


@dataclass
class _Replay:
    """Hold a session to replay and, per cache size, LRU's and the optimum's misses on it."""

    part: Trace
    bounds: dict[int, tuple[int, int]]

    def misses(self, n_slots: int, policy: str, data: bytes | None = None) -> int:
        part = self.part
        counts = _core.simulate(
            part.columns(), part.n_layers, part.n_experts, n_slots, policy, 0, data
        )
        return counts["misses"]

    def gap_share(self, n_slots: int, data: bytes) -> float:
        """Give the share of the LRU-to-optimum gap taken back from cold."""
        if n_slots not in self.bounds:
            self.bounds[n_slots] = self.misses(n_slots, "lru"), self.misses(n_slots, "belady")
        lru, best = self.bounds[n_slots]
        return (lru - self.misses(n_slots, "reuse-biased", data)) / (lru - best or 1)


def _replays(fold: Trace) -> list[_Replay]:
    sessions = _sessions(fold)
    chosen = np.linspace(0, len(sessions) - 1, min(REPLAYS_PER_FOLD, len(sessions))).astype(int)
    return [_Replay(sessions[int(i)], {}) for i in chosen]
