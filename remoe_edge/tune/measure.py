"""What routers cost and what they save, on held-out text: perplexity, reuse, misses, spread.

Each domain is cut into windows that the model reads one by one; the cache stays warm from window to
window of a domain. Windows are also what the bootstrap draws from, in pairs for two sets of
routers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from remoe_edge.routing.replay import misses_by_token
from remoe_edge.tune.data import Domain
from remoe_edge.tune.decoder import Decoder

Array = npt.NDArray[np.float64]
FRACTIONS = (0.10, 0.25, 0.50)
POLICIES = ("lru", "belady")  # those that bracket the others
SPANS = (16, 64, 256)
_RESAMPLES = 1000


@dataclass
class DomainMeasure:
    """One domain under one set of routers; arrays are per window, to be resampled."""

    tokens_per_window: int
    loss: Array  # [windows] mean nats per token
    overlap: Array  # [windows, layers] EOR
    misses: dict[str, Array] = field(default_factory=dict)  # "lru@0.25" -> [windows] per token
    entropy: Array = field(default_factory=lambda: np.zeros(0))  # [windows, layers] nats
    use: Array = field(default_factory=lambda: np.zeros(0))  # [layers, experts] share of choices
    distinct: dict[int, Array] = field(default_factory=dict)  # span -> [windows] per layer


def slots_at(decoder: Decoder, fraction: float) -> int:
    """Return the slots of a cache for that fraction of all experts, at least one layer's choice."""
    return max(decoder.shape.top_k, round(fraction * decoder.shape.n_slots_all))


@torch.no_grad()  # type: ignore[untyped-decorator]
def measure_domain(
    decoder: Decoder,
    routers: Sequence[Tensor],
    domain: Domain,
    window: int,
    *,
    batch: int = 8,
    fractions: Sequence[float] = FRACTIONS,
    policies: Sequence[str] = POLICIES,
    on_window: Callable[[int], None] | None = None,
) -> DomainMeasure:
    """Run a domain's whole windows through the model and measure them."""
    count = (len(domain.tokens) - 1) // window
    placed = [router.to(decoder.device, torch.float32) for router in routers]
    loss, overlap, entropy, chosen = [], [], [], []
    for first in range(0, count, batch):
        starts = range(first * window, min(first + batch, count) * window, window)
        rows = torch.from_numpy(np.stack([domain.tokens[s : s + window + 1] for s in starts]))
        rows = rows.to(decoder.device)
        hidden, routing = decoder.hidden(rows[:, :-1], placed)
        loss.append(decoder.token_losses(hidden, rows[:, 1:]).mean(1).double().cpu().numpy())
        picked = routing.chosen
        again = (picked[:, :, 1:, :, None] == picked[:, :, :-1, None, :]).any(-1)
        overlap.append(again.double().mean((2, 3)).T.cpu().numpy())
        log_p = routing.logits.log_softmax(-1)
        entropy.append(-(log_p.exp() * log_p).sum(-1).double().mean(2).T.cpu().numpy())
        chosen.append(picked.to(torch.int32).cpu().numpy())
        if on_window is not None:
            on_window(len(starts))
    trace = np.concatenate(chosen, axis=1)  # [layers, windows, tokens, k]
    layers, windows, tokens, top_k = trace.shape
    n_experts = decoder.shape.n_experts
    use = np.stack([np.bincount(layer.reshape(-1), minlength=n_experts) for layer in trace])
    found = DomainMeasure(
        tokens_per_window=window,
        loss=np.concatenate(loss),
        overlap=np.concatenate(overlap),
        entropy=np.concatenate(entropy),
        use=use / (windows * tokens * top_k),
        distinct={span: _distinct(trace, span) for span in SPANS if span <= tokens},
    )
    flat = trace.reshape(layers, windows * tokens, top_k)
    for fraction in fractions:
        for policy in policies:
            counted = misses_by_token(flat, slots_at(decoder, fraction), policy)
            found.misses[f"{policy}@{fraction:g}"] = counted.reshape(windows, tokens).mean(1)
    return found


def _distinct(trace: npt.NDArray[np.int32], span: int) -> Array:
    """Return per window the mean number of distinct experts of one layer in `span` tokens."""
    layers, windows, tokens, top_k = trace.shape
    whole = tokens // span * span
    parts = np.sort(trace[:, :, :whole].reshape(layers, windows, -1, span * top_k), axis=-1)
    distinct = 1 + (np.diff(parts, axis=-1) != 0).sum(-1)
    mean: Array = distinct.mean((0, 2))
    return mean


def summarise(
    measures: Mapping[str, DomainMeasure],
    base: Mapping[str, DomainMeasure] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every domain's figures and "all" (windows pooled), with 95 % bootstrap intervals.

    With `base`, changes relative to it, in per cent, from paired windows.
    """
    names = list(measures)
    summary = {name: _figures(measures[name], base[name] if base else None, seed) for name in names}
    if len(names) > 1:
        pooled = _pool(list(measures.values()))
        pooled_base = _pool([base[name] for name in names]) if base else None
        summary["all"] = _figures(pooled, pooled_base, seed)
    return summary


def _pool(measures: Sequence[DomainMeasure]) -> DomainMeasure:
    windows = np.array([len(m.loss) for m in measures], dtype=np.float64)
    return DomainMeasure(
        tokens_per_window=measures[0].tokens_per_window,
        loss=np.concatenate([m.loss for m in measures]),
        overlap=np.concatenate([m.overlap for m in measures]),
        misses={k: np.concatenate([m.misses[k] for m in measures]) for k in measures[0].misses},
        entropy=np.concatenate([m.entropy for m in measures]),
        use=np.average([m.use for m in measures], axis=0, weights=windows),
        distinct={
            k: np.concatenate([m.distinct[k] for m in measures]) for k in measures[0].distinct
        },
    )


def _figures(m: DomainMeasure, base: DomainMeasure | None, seed: int) -> dict[str, Any]:
    n_experts = m.use.shape[1]
    share = np.clip(m.use, 1e-12, None)
    effective = np.exp(-(share * np.log(share)).sum(1))
    windows = len(m.loss)
    draws = np.random.default_rng(seed).integers(0, windows, (_RESAMPLES, windows))

    def interval(values: Array) -> dict[str, float]:
        return _interval(float(values.mean()), values[draws].mean(1))

    figures: dict[str, Any] = {
        "windows": windows,
        "tokens": windows * m.tokens_per_window,
        "perplexity": _interval(float(np.exp(m.loss.mean())), np.exp(m.loss[draws].mean(1))),
        "eor": interval(m.overlap.mean(1)),
        "eor_by_layer": m.overlap.mean(0).tolist(),
        "misses_per_token": {name: interval(values) for name, values in m.misses.items()},
        "routing_entropy": interval(m.entropy.mean(1)),
        "load": {
            # 1: even use; the share of experts that would give this entropy of use if used evenly.
            "effective_share": float((effective / n_experts).mean()),
            "max_over_mean": float((m.use.max(1) * n_experts).mean()),
            "variation": float((m.use.std(1) * n_experts).mean()),
            "unused": int((m.use == 0).sum()),
        },
        "distinct_experts": {str(span): interval(values) for span, values in m.distinct.items()},
    }
    if base is not None:
        figures["change_percent"] = _changes(m, base, draws)
    return figures


def _changes(m: DomainMeasure, base: DomainMeasure, draws: npt.NDArray[np.int64]) -> dict[str, Any]:
    def ratio(ours: Array, theirs: Array) -> dict[str, float]:
        whole = 100 * (ours.mean() / theirs.mean() - 1)
        return _interval(float(whole), 100 * (ours[draws].mean(1) / theirs[draws].mean(1) - 1))

    difference = m.loss - base.loss
    return {
        "perplexity": _interval(
            float(100 * np.expm1(difference.mean())), 100 * np.expm1(difference[draws].mean(1))
        ),
        "eor": ratio(m.overlap.mean(1), base.overlap.mean(1)),
        "misses_per_token": {
            name: ratio(values, base.misses[name]) for name, values in m.misses.items()
        },
    }


def _interval(value: float, resampled: Array) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}
