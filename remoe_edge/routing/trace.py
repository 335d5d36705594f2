"""Traces: which experts every step of every layer was routed to, as arrays.

A trace is read from a file that the engine recorded (docs/policies.md draws its bytes) or from an
`.npz` holding `experts[layer, token, k]`. Files are memory-mapped: the columns are small and in
memory, the router's probabilities stay in the file until they are asked for.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import replacing
from remoe_edge.files.npz import read_npz
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.native import _core

MOST_LAYERS, MOST_EXPERTS = 4096, 16384  # as in the core
_NO_PROBS = np.zeros(0, np.uint8)


@dataclass
class Trace:
    """Hold one recording: a column per property, one row per event (one step of one layer).

    `experts[offsets[i]:offsets[i + 1]]` are the distinct experts of event i, in the order the
    engine presented them. `ids_at` and `probs_at` are byte offsets into `data`, -1 where an event
    has none; an event without ids has one token, whose ids are its experts.
    """

    path: str
    n_layers: int
    n_experts: int
    top_k: int
    fingerprint: str
    meta: dict[str, Any]
    step: npt.NDArray[np.int64]
    layer: npt.NDArray[np.uint16]
    phase: npt.NDArray[np.uint8]  # 0 prefill, 1 decode
    n_tokens: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    experts: npt.NDArray[np.uint16]
    ids_at: npt.NDArray[np.int64]
    probs_at: npt.NDArray[np.int64]
    n_prob_tokens: npt.NDArray[np.uint16]
    data: npt.NDArray[np.uint8] = field(default_factory=lambda: _NO_PROBS, repr=False)

    @property
    def n_events(self) -> int:
        """Count the events."""
        return len(self.layer)

    @property
    def total_tokens(self) -> int:
        """Count the tokens of the first layer."""
        return int(self.n_tokens[self.rows(0)].sum(dtype=np.int64))

    def rows(self, layer: int) -> npt.NDArray[np.int64]:
        """List the events of a layer, each step once.

        An engine whose cache is small presents a step's experts again for each piece of an FFN that
        other operations cut; such an event follows its like and routes no token anew.
        """
        again = np.zeros(self.n_events, np.bool_)
        again[1:] = (self.step[1:] == self.step[:-1]) & (self.layer[1:] == self.layer[:-1])
        return np.flatnonzero((self.layer == layer) & ~again)

    @property
    def expert_bytes(self) -> int | None:
        """Say how many bytes one expert has, mean over the layers, where the recording knows it."""
        value = self.meta.get("expert_bytes")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return int(value) if math.isfinite(value) and value > 0 else None

    def has_probs(self) -> bool:
        """Say whether any event carries the router's probabilities."""
        return bool((self.probs_at >= 0).any())

    def routed(self) -> npt.NDArray[np.int16]:
        """Give the experts of every token as `[layer, token, k]`.

        Raises InputError where the layers have different numbers of tokens.
        """
        per_layer = []
        for layer in range(self.n_layers):
            rows = self.rows(layer)
            if (self.ids_at[rows] < 0).all() and (np.diff(self.offsets)[rows] == self.top_k).all():
                at = self.offsets[rows][:, None] + np.arange(self.top_k)
                per_layer.append(self.experts[at].astype(np.int16))
                continue
            blocks = [self.token_ids(int(row)) for row in rows]
            per_layer.append(np.concatenate(blocks) if blocks else np.empty((0, self.top_k)))
        if len({len(ids) for ids in per_layer}) != 1:
            # A running engine's last layer sees only the tokens that an answer is wanted for.
            raise InputError(
                f"{self.path}: its layers have different numbers of tokens; record prompts with "
                "`remoe-edge trace`, which has every layer route every token"
            )
        return np.stack(per_layer).astype(np.int16)

    def token_ids(self, event: int) -> npt.NDArray[np.uint16]:
        """Give the experts of every token of an event as `[n_tokens, top_k]`."""
        at = int(self.ids_at[event])
        if at < 0:
            begin, end = self.offsets[event], self.offsets[event + 1]
            if end - begin != self.top_k:
                raise InputError(f"{self.path}: event {event} does not say which token took what")
            return self.experts[begin:end].reshape(1, self.top_k)
        count = int(self.n_tokens[event]) * self.top_k
        ids = self.data[at : at + 2 * count].view("<u2")
        return np.asarray(ids, dtype=np.uint16).reshape(-1, self.top_k)

    def probs(self, event: int) -> npt.NDArray[np.float32] | None:
        """Give an event's router probabilities `[n_prob_tokens, n_experts]`, or None.

        They were stored in a byte each, within 3.2 % of the value; the last row is the last token's.
        """
        last, rows = int(self.probs_at[event]), int(self.n_prob_tokens[event])
        if last < 0:
            return None
        begin = last - (rows - 1) * self.n_experts
        codes = self.data[begin : last + self.n_experts].reshape(rows, self.n_experts)
        return np.asarray(_core.from_prob8(codes), dtype=np.float32)

    def columns(self) -> dict[str, Any]:
        """Give what the replay reads."""
        return {
            "step": self.step,
            "layer": self.layer,
            "phase": self.phase,
            "n_tokens": self.n_tokens,
            "offsets": self.offsets,
            "experts": self.experts,
            "data": self.data if len(self.data) else None,
            "top_k": self.top_k,
            "ids_at": self.ids_at,
            "probs_at": self.probs_at,
            "n_prob_tokens": self.n_prob_tokens,
        }

    def tokens(self, begin: int, end: int) -> Trace:
        """Give the part from step number `begin` to before `end`, counted from the first step."""
        steps = np.cumsum(np.concatenate([[0], np.diff(self.step) != 0]))
        keep = np.flatnonzero((steps >= begin) & (steps < end))
        if len(keep) == 0:
            raise InputError(f"{self.path}: has no steps {begin} to {end}")
        first, last = int(keep[0]), int(keep[-1]) + 1
        offsets = self.offsets[first : last + 1]
        rows = slice(first, last)
        return Trace(
            **{
                **self.__dict__,
                "step": self.step[rows],
                "layer": self.layer[rows],
                "phase": self.phase[rows],
                "n_tokens": self.n_tokens[rows],
                "offsets": offsets - offsets[0],
                "experts": self.experts[offsets[0] : offsets[-1]],
                "ids_at": self.ids_at[rows],
                "probs_at": self.probs_at[rows],
                "n_prob_tokens": self.n_prob_tokens[rows],
            }
        )

    def per_token(self) -> Trace:
        """Give the same routing with every token a step of its own, prefill included.

        Raises InputError where the layers have different numbers of tokens.
        """
        routed = self.routed()
        n_layers, n_tokens, _ = routed.shape
        trace = from_routed(
            routed, self.n_experts, path=self.path, meta=self.meta, fingerprint=self.fingerprint
        )
        if self.has_probs():
            at = np.full((n_tokens, n_layers), -1, np.int64)
            for layer in range(n_layers):
                token = 0
                for event in self.rows(layer):
                    token += int(self.n_tokens[event])
                    rows = int(self.n_prob_tokens[event])
                    back = np.arange(rows - 1, -1, -1)
                    at[token - rows : token, layer] = self.probs_at[event] - back * self.n_experts
            trace.data, trace.probs_at = self.data, at.reshape(-1)
            trace.n_prob_tokens = (trace.probs_at >= 0).astype(np.uint16)
        return trace

    def save(self, path: str | Path) -> None:
        """Write the trace to a file, whole or not at all. Raises ReadError where it cannot be written."""
        with replacing([Path(path)]) as (part,):
            self._write(part)

    def _write(self, path: Path) -> None:
        writer = _core.TraceWriter(
            str(path), self.n_layers, self.n_experts, self.top_k, self.fingerprint,
            json.dumps(self.meta),
        )  # fmt: skip
        for event in range(self.n_events):
            writer.append(
                layer=int(self.layer[event]),
                step=int(self.step[event]),
                decode=bool(self.phase[event]),
                experts=self.experts[self.offsets[event] : self.offsets[event + 1]],
                n_tokens=int(self.n_tokens[event]),
                ids=self.token_ids(event) if self.ids_at[event] >= 0 else None,
                probs=self.probs(event),
            )
        writer.finish()


def read_trace(path: str | Path) -> Trace:
    """Read a trace: a recorded file, or an `.npz` with `experts[layer, token, k]`.

    Raises InputError where there is no such file, ModelError naming event and offset where it is
    damaged.
    """
    path = Path(path)
    with open_regular(path, "trace") as file:
        try:
            head = file.read(4)
            size = file.seek(0, 2)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the trace {path}: {error}") from error
    if head == b"PK\x03\x04":
        return _from_npz(path)
    columns = _core.parse_trace(mapped, str(path))
    fingerprint = columns.pop("fingerprint").decode("utf-8", "replace")
    meta = _meta(columns.pop("meta"), path)
    return Trace(
        path=str(path), fingerprint=fingerprint, meta=meta,
        data=np.frombuffer(mapped, np.uint8), **columns,
    )  # fmt: skip


def from_routed(
    routed: npt.NDArray[Any],
    n_experts: int,
    *,
    path: str = "memory",
    meta: dict[str, Any] | None = None,
    fingerprint: str = "",
) -> Trace:
    """Make a trace of one token per step from `experts[layer, token, k]`.

    Raises InputError for experts outside `[0, n_experts)` or named twice by one token, or more of
    them, or of layers, than a trace can name.
    """
    if routed.ndim != 3 or routed.dtype.kind not in "iu" or min(routed.shape) == 0:
        raise InputError(
            f"{path}: `experts` must be integers [layer, token, k], not {routed.shape}"
        )
    if not 1 <= n_experts <= MOST_EXPERTS or len(routed) > MOST_LAYERS:
        raise InputError(
            f"{path}: {len(routed)} layers of {n_experts} experts; a trace names up to {MOST_LAYERS} "
            f"of {MOST_EXPERTS}"
        )
    if routed.min() < 0 or routed.max() >= n_experts:
        raise InputError(
            f"{path}: experts lie in {routed.min()}..{routed.max()} and a layer has {n_experts}"
        )
    ordered = np.sort(routed, axis=2)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise InputError(f"{path}: a token is routed twice to the same expert")
    n_layers, n_steps, top_k = routed.shape
    n = n_layers * n_steps
    return Trace(
        path=path, n_layers=n_layers, n_experts=n_experts, top_k=top_k,
        fingerprint=fingerprint, meta=meta or {},
        step=np.repeat(np.arange(n_steps, dtype=np.int64), n_layers),
        layer=np.tile(np.arange(n_layers, dtype=np.uint16), n_steps),
        phase=np.ones(n, np.uint8),
        n_tokens=np.ones(n, np.uint32),
        offsets=np.arange(0, n * top_k + 1, top_k, dtype=np.int64),
        experts=np.ascontiguousarray(routed.transpose(1, 0, 2)).astype(np.uint16).reshape(-1),
        ids_at=np.full(n, -1, np.int64),
        probs_at=np.full(n, -1, np.int64),
        n_prob_tokens=np.zeros(n, np.uint16),
    )  # fmt: skip


def _from_npz(path: Path) -> Trace:
    arrays = read_npz(path, "trace", ["experts"], ["meta"])
    routed = arrays["experts"]
    meta = _meta(str(arrays["meta"]), path) if "meta" in arrays else {}
    n_experts = meta.get("num_experts", meta.get("n_experts"))
    if n_experts is None:
        if routed.size == 0 or routed.dtype.kind not in "iu":
            raise InputError(f"{path}: `experts` must be integers [layer, token, k]")
        n_experts = int(routed.max()) + 1
    if isinstance(n_experts, bool) or not isinstance(n_experts, int):
        raise InputError(f"{path}: its meta says {n_experts!r} experts, which is no count")
    return from_routed(routed, n_experts, path=str(path), meta=meta)


def _meta(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise InputError(f"{path}: its meta is no JSON object: {error}") from error
