"""Held-out loss of a model in bits per byte, and where its routers send the tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .model import MoeModel


class DomainResult(NamedTuple):
    """One domain's held-out figures."""

    bits_per_byte: float
    loss: float  # nats per token
    tokens: int
    bytes: int
    counts: Tensor  # [layers, experts] pairs routed


def token_bytes(tokenizer_json: Path) -> np.ndarray:
    """Return how many bytes of text each token stands for; specials stand for none."""
    import json

    spec = json.loads(tokenizer_json.read_text("utf-8"))
    specials = {t["id"] for t in spec["added_tokens"] if t["special"]}
    vocab: dict[str, int] = spec["model"]["vocab"]
    sizes = np.zeros(max(*vocab.values(), *specials) + 1, dtype=np.int64)
    for piece, number in vocab.items():
        # In byte-level BPE every character of a piece stands for one byte.
        sizes[number] = 0 if number in specials else len(piece)
    return sizes


@torch.no_grad()
def evaluate(
    model: MoeModel,
    path: Path,
    sizes: np.ndarray,
    device: torch.device,
    max_tokens: int = 0,
    rows: int = 16,
    autocast: bool = False,
    window: int = 0,
) -> DomainResult:
    """Judge one token stream in windows (by default of the context), nothing dropped.

    Every token but the first is predicted from at most a window of tokens before it.
    """
    length = window or model.config.context
    data = np.fromfile(path, dtype="<u2").astype(np.int64) & 0x7FFF
    if max_tokens:
        data = data[: max_tokens + 1]
    total, seen, size = 0.0, 0, 0
    counts = torch.zeros(model.config.layers, model.config.experts, dtype=torch.int64)
    starts = list(range(0, len(data) - 1, length))
    for first in range(0, len(starts), rows):
        pieces = [data[s : s + length + 1] for s in starts[first : first + rows]]
        full = [p for p in pieces if len(p) == length + 1]
        for group in ([np.stack(full)] if full else []) + [
            p[None] for p in pieces if len(p) != length + 1
        ]:
            ids = torch.from_numpy(group).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                hidden, loads = model(ids[:, :-1])
                logits = model.output(hidden).float()
            targets = ids[:, 1:]
            total += float(
                F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            )
            seen += targets.numel()
            size += int(sizes[group[:, 1:]].sum())
            counts += torch.stack([load.counts for load in loads]).cpu()
    return DomainResult(total / math.log(2) / size, total / seen, seen, size, counts)
