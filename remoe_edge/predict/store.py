"""Past prompts: what compares them, and how often each layer's experts were used while they ran.

Of a prompt's text only its summary is kept, the sum of its tokens' embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import replacing
from remoe_edge.files.npz import Arrays, read_npz
from remoe_edge.predict.embeddings import Floats
from remoe_edge.routing.trace import Trace

Halves = npt.NDArray[np.float16]

_VERSION = 2
MOST_PROMPTS = 1024  # 16 MiB at 48 layers of 128 experts and a width of 2048
_MOST_LIMIT = 1 << 16  # of a store: what is searched whole, and written whole at every close
_ROUNDING = 0.02  # of a layer's shares, in half precision, from adding up to 1


def activation(routed: npt.NDArray[np.integer], n_experts: int) -> Floats:
    """Count the experts of `[layer, token, k]` into shares [layers, experts]; rows sum to 1.

    Raises InputError for no tokens, or experts that a layer does not have.
    """
    if routed.ndim != 3 or min(routed.shape) == 0:
        raise InputError(f"routing must be [layer, token, k] and not empty, not {routed.shape}")
    if routed.min() < 0 or routed.max() >= n_experts:
        raise InputError(f"experts lie in {routed.min()}..{routed.max()} of {n_experts}")
    flat = routed.reshape(len(routed), -1)
    counts = np.stack([np.bincount(row, minlength=n_experts) for row in flat])
    return np.asarray(counts / flat.shape[1], np.float32)


def by_prompt(trace: Trace) -> list[Floats]:
    """Cut a recording where decoding gives way to the next prompt; give each part's activation.

    Raises InputError where the layers saw different tokens.
    """
    first = np.flatnonzero(np.concatenate([[True], np.diff(trace.step) != 0]))
    decode = trace.phase[first].astype(bool)
    starts = np.flatnonzero(~decode & np.concatenate([[True], decode[:-1]])).tolist()
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    ends = [*starts[1:], len(first)]
    return [
        activation(trace.tokens(begin, end).routed(), trace.n_experts)
        for begin, end in zip(starts, ends, strict=True)
    ]


class PromptStore:
    """Keep past prompts of one model, the oldest leaving when there are too many."""

    def __init__(
        self, n_layers: int, n_experts: int, fingerprint: str = "", limit: int = MOST_PROMPTS
    ) -> None:
        self.n_layers, self.n_experts = n_layers, n_experts
        self.fingerprint = fingerprint
        self.limit = limit
        self.summaries: list[Halves] = []
        self.activations: list[Halves] = []

    def __len__(self) -> int:
        return len(self.summaries)

    @property
    def width(self) -> int:
        """Give the width of the summaries, 0 while there is none."""
        return len(self.summaries[0]) if self.summaries else 0

    def add(self, summary: Floats, shares: Floats) -> None:
        """Add a prompt's summary [width] and activation [layers, experts].

        Raises InputError for another shape than the store's, or what is no number in half precision.
        """
        if shares.shape != (self.n_layers, self.n_experts):
            raise InputError(
                f"an activation of {shares.shape} in a store of {self.n_layers} layers of "
                f"{self.n_experts} experts"
            )
        if self.summaries and summary.shape != self.summaries[0].shape:
            raise InputError(
                f"a summary of {summary.shape} beside others of {self.summaries[0].shape}"
            )
        with np.errstate(over="ignore"):
            kept, kept_shares = summary.astype(np.float16), shares.astype(np.float16)
        if fault := _fault(kept[None], kept_shares[None]):
            raise InputError(f"a prompt cannot be kept: {fault}")
        self.summaries.append(kept)
        self.activations.append(kept_shares)
        del self.summaries[: -self.limit], self.activations[: -self.limit]

    def add_last(self, other: PromptStore, n: int) -> None:
        """Add the last `n` prompts of another store of the same model."""
        begin = len(other) - n
        self.summaries += other.summaries[begin:]
        self.activations += other.activations[begin:]
        del self.summaries[: -self.limit], self.activations[: -self.limit]

    def add_trace(self, summaries: Sequence[Floats], trace: Trace) -> None:
        """Add the prompts that a trace was recorded of, in their order.

        Raises InputError where the trace holds another number of prompts, or is of another model.
        """
        parts = by_prompt(trace)
        if len(parts) != len(summaries):
            raise InputError(
                f"{trace.path} holds {len(parts)} prompts with answers, not {len(summaries)}"
            )
        if self.fingerprint and trace.fingerprint and self.fingerprint != trace.fingerprint:
            raise InputError(
                f"{trace.path} is a trace of another model: fingerprint {trace.fingerprint[:12]}, "
                f"not {self.fingerprint[:12]}"
            )
        for summary, shares in zip(summaries, parts, strict=True):
            self.add(summary, shares)

    def save(self, path: str | Path) -> None:
        """Write the store, whole or not at all. Raises ReadError where it cannot be written."""
        shape = (-1, self.n_layers, self.n_experts)
        with replacing([Path(path)]) as (part,), part.open("wb") as file:
            np.savez_compressed(
                file,
                version=np.int64(_VERSION),
                fingerprint=np.str_(self.fingerprint),
                limit=np.int64(self.limit),
                summaries=np.asarray(self.summaries, np.float16).reshape(len(self), self.width),
                activations=np.asarray(self.activations, np.float16).reshape(shape),
            )

    @classmethod
    def load(cls, path: str | Path, fingerprint: str = "") -> PromptStore:
        """Read a store; with `fingerprint`, one of another model is refused.

        Raises InputError for no store, a damaged one, or one of another model.
        """
        held = read_npz(
            path, "prompts in", ["version", "fingerprint", "limit", "summaries", "activations"]
        )
        version, limit = _scalar(path, held, "version", "iu"), _scalar(path, held, "limit", "iu")
        made_for = str(_scalar(path, held, "fingerprint", "U"))
        if version != _VERSION:
            raise InputError(f"{path}: prompts of version {version}, this reads {_VERSION}")
        summaries, activations = held["summaries"], held["activations"]
        whole = (
            activations.ndim == 3
            and summaries.ndim == 2
            and activations.dtype.kind == summaries.dtype.kind == "f"
            and len(summaries) == len(activations) <= limit <= _MOST_LIMIT
            and min(activations.shape[1:]) > 0
        )
        if not whole:
            raise InputError(f"{path}: its prompts and activations do not fit together")
        with np.errstate(over="ignore"):
            summaries, activations = (a.astype(np.float16) for a in (summaries, activations))
        if fault := _fault(summaries, activations):
            raise InputError(f"{path}: {fault}")
        if fingerprint and made_for and fingerprint != made_for:
            raise InputError(
                f"{path}: prompts of another model, or of other routers (fingerprint "
                f"{made_for[:12]}, not {fingerprint[:12]})"
            )
        store = cls(activations.shape[1], activations.shape[2], made_for, int(limit))
        store.summaries = list(summaries)
        store.activations = list(activations)
        return store


def _scalar(path: str | Path, held: Arrays, name: str, kinds: str) -> Any:
    value = held[name]
    if value.shape != () or value.dtype.kind not in kinds:
        raise InputError(f"{path}: its `{name}` is no such thing")
    return value[()]


def _fault(summaries: Halves, activations: Halves) -> str | None:
    """Say which prompt's summary [n, width] or activation [n, layers, experts] is none, if one is."""
    for prompt in np.flatnonzero(~np.isfinite(summaries).all(axis=1)):
        return f"the summary of prompt {prompt} holds what is no number"
    # A NaN fails both comparisons.
    sums = activations.sum(axis=2, dtype=np.float32)
    sound = (activations >= 0).all(axis=2) & (np.abs(sums - 1) <= _ROUNDING)
    for prompt, layer in np.argwhere(~sound):
        return f"the activation of prompt {prompt}, layer {layer}, is no share of every expert"
    return None
