"""Batches from token streams: a pure function of (seed, step), so a run resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOKEN_MASK = (1 << 15) - 1


class Stream:
    """One token stream kept on the device, cut into windows in a new order every epoch."""

    def __init__(self, path: Path, length: int, device: torch.device, rows: bool, seed: int) -> None:
        data = np.fromfile(path, dtype="<u2").view(np.int16)
        if rows:  # packed rows: windows must start where rows start
            self.windows = len(data) // (length + 1)
        else:
            self.windows = (len(data) - length - 1) // length
        if self.windows < 1:
            raise ValueError(f"{path}: {len(data)} tokens are fewer than one window of {length + 1}")
        self.tokens = torch.from_numpy(data).to(device)
        self.length, self.rows, self.seed = length, rows, seed
        self._order: tuple[int, np.ndarray] | None = None

    def take(self, first: int, count: int) -> Tensor:
        """Return windows number first .. first+count, [count, length + 1] int16."""
        starts = np.empty(count, dtype=np.int64)
        for i in range(count):
            epoch, place = divmod(first + i, self.windows)
            starts[i] = self._starts(epoch)[place]
        index = torch.from_numpy(starts).to(self.tokens.device)[:, None]
        return self.tokens[index + torch.arange(self.length + 1, device=self.tokens.device)]

    def _starts(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(self.windows)
            if self.rows:
                starts = order * (self.length + 1)
            else:
                # A new phase each epoch, so that windows are not cut at the same places.
                starts = order * self.length + int(rng.integers(0, self.length))
                starts = np.minimum(starts, len(self.tokens) - self.length - 1)
            self._order = (epoch, starts)
        return self._order[1]


class Mixture:
    """Streams drawn in fixed shares, every batch mixing all of them."""

    def __init__(self, streams: list[tuple[Stream, float]], rows_per_batch: int) -> None:
        total = sum(share for _, share in streams)
        self.streams = [s for s, _ in streams]
        self.ends = np.cumsum([share / total for _, share in streams])
        self.rows = rows_per_batch
        if min(share / total for _, share in streams) * rows_per_batch < 1:
            raise ValueError(f"{rows_per_batch} rows per batch are too few for the smallest share")

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets), each [rows, length] int64; targets without loss are -100."""
        low = np.round(np.concatenate([[0.0], self.ends]) * self.rows * step)
        high = np.round(np.concatenate([[0.0], self.ends]) * self.rows * (step + 1))
        parts = []
        taken = (high - low).astype(np.int64)
        counts = np.diff(taken)
        for i, stream in enumerate(self.streams):
            # Windows this stream gave before this step, from the same rounding.
            before = int(low[i + 1] - low[i])
            if counts[i]:
                parts.append(stream.take(before, int(counts[i])))
        windows = torch.cat(parts).long() & 0xFFFF
        ids = windows & TOKEN_MASK
        targets = torch.where(windows[:, 1:] > TOKEN_MASK, -100, ids[:, 1:])
        return ids[:, :-1].contiguous(), targets
