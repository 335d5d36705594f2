"""Past prompts: what compares them, and how often each layer's experts were used while they ran.

Of a prompt's text only its summary is kept, the sum of its tokens' embeddings."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import replacing
from remoe_edge.predict.embeddings import Floats
from remoe_edge.routing.trace import Trace

_VERSION = 2
MOST_PROMPTS = 1024  # 16 MiB at 48 layers of 128 experts and a width of 2048


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
        self.summaries: list[npt.NDArray[np.float16]] = []
        self.activations: list[npt.NDArray[np.float16]] = []

    def __len__(self) -> int:
        return len(self.summaries)

    @property
    def width(self) -> int:
        """Give the width of the summaries, 0 while there is none."""
        return len(self.summaries[0]) if self.summaries else 0

    def add(self, summary: Floats, shares: Floats) -> None:
        """Add a prompt's summary [width] and activation [layers, experts].

        Raises InputError for another shape than the store's.
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
        self.summaries.append(summary.astype(np.float16))
        self.activations.append(shares.astype(np.float16))
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
        try:
            with np.load(path, allow_pickle=False) as held:
                version = int(held["version"])
                made_for, limit = str(held["fingerprint"]), int(held["limit"])
                summaries = held["summaries"]
                activations = held["activations"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"cannot read the prompts in {path}: {error}") from error
        if version != _VERSION:
            raise InputError(f"{path}: prompts of version {version}, this reads {_VERSION}")
        whole = (
            activations.ndim == 3
            and summaries.ndim == 2
            and len(summaries) == len(activations)
            and np.isfinite(summaries).all()
            and np.isfinite(activations).all()
            and (activations >= 0).all()
            and limit > 0
        )
        if not whole:
            raise InputError(f"{path}: its prompts and activations do not fit together")
        if fingerprint and made_for and fingerprint != made_for:
            raise InputError(
                f"{path}: prompts of another model, or of other routers (fingerprint "
                f"{made_for[:12]}, not {fingerprint[:12]})"
            )
        store = cls(activations.shape[1], activations.shape[2], made_for, limit)
        store.summaries = list(summaries.astype(np.float16))
        store.activations = list(activations.astype(np.float16))
        return store
