"""Past prompts: their tokens, and how often each layer's experts were used while they ran."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from remoe_edge.convert.atomic import replacing
from remoe_edge.errors import InputError
from remoe_edge.predict.embeddings import Floats
from remoe_edge.trace import Trace

_VERSION = 1
MOST_PROMPTS = 4096


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
        self.tokens: list[npt.NDArray[np.int32]] = []
        self.activations: list[npt.NDArray[np.float16]] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], shares: Floats) -> None:
        """Add a prompt and its activation [layers, experts]. Raises InputError for another shape."""
        if shares.shape != (self.n_layers, self.n_experts):
            raise InputError(
                f"an activation of {shares.shape} in a store of {self.n_layers} layers of "
                f"{self.n_experts} experts"
            )
        if len(tokens) == 0:
            raise InputError("a prompt without tokens")
        self.tokens.append(np.asarray(tokens, np.int32))
        self.activations.append(shares.astype(np.float16))
        del self.tokens[: -self.limit], self.activations[: -self.limit]

    def add_trace(self, prompts: Sequence[Sequence[int]], trace: Trace) -> None:
        """Add the prompts that a trace was recorded of, in their order.

        Raises InputError where the trace holds another number of prompts, or is of another model.
        """
        parts = by_prompt(trace)
        if len(parts) != len(prompts):
            raise InputError(
                f"{trace.path} holds {len(parts)} prompts with answers, not {len(prompts)}"
            )
        if self.fingerprint and trace.fingerprint and self.fingerprint != trace.fingerprint:
            raise InputError(
                f"{trace.path} is a trace of another model: fingerprint {trace.fingerprint[:12]}, "
                f"not {self.fingerprint[:12]}"
            )
        for tokens, shares in zip(prompts, parts, strict=True):
            self.add(tokens, shares)

    def frequency(self) -> Floats:
        """Give the mean activation of all prompts, [layers, experts]: the global frequency.

        Raises InputError for an empty store.
        """
        if not self.activations:
            raise InputError("the store holds no prompts")
        return np.asarray(np.mean(self.activations, axis=0, dtype=np.float64), np.float32)

    def save(self, path: str | Path) -> None:
        """Write the store, whole or not at all. Raises ReadError where it cannot be written."""
        lengths = np.asarray([len(each) for each in self.tokens], np.int64)
        shape = (0, self.n_layers, self.n_experts)
        with replacing([Path(path)]) as (part,), part.open("wb") as file:
            np.savez_compressed(
                file,
                version=np.int64(_VERSION),
                fingerprint=np.str_(self.fingerprint),
                limit=np.int64(self.limit),
                lengths=lengths,
                tokens=np.concatenate([np.zeros(0, np.int32), *self.tokens]),
                activations=np.asarray(self.activations, np.float16).reshape(-1, *shape[1:])
                if self.activations
                else np.zeros(shape, np.float16),
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
                lengths, tokens = held["lengths"], held["tokens"]
                activations = held["activations"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"cannot read the prompts in {path}: {error}") from error
        if version != _VERSION:
            raise InputError(f"{path}: prompts of version {version}, this reads {_VERSION}")
        whole = (
            activations.ndim == 3
            and lengths.shape == (len(activations),)
            and tokens.shape == (int(lengths.sum()),)
            and (lengths > 0).all()
            and limit > 0
        )
        if not whole:
            raise InputError(f"{path}: its prompts and activations do not fit together")
        if fingerprint and made_for and fingerprint != made_for:
            raise InputError(
                f"{path}: prompts of another model (fingerprint {made_for[:12]}, not "
                f"{fingerprint[:12]})"
            )
        store = cls(activations.shape[1], activations.shape[2], made_for, limit)
        store.tokens = list(np.split(tokens.astype(np.int32), np.cumsum(lengths)[:-1]))
        store.activations = list(activations.astype(np.float16))
        if len(lengths) == 0:
            store.tokens = []
        return store
