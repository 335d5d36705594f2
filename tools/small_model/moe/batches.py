"""Batches from token streams: a pure function of (seed, step), so a run resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOKEN_MASK = (1 << 15) - 1


class Stream:
    """One token stream kept on the device, cut into windows in a new order every epoch."""

    def __init__(
        self,
        path: Path,
        length: int,
        device: torch.device,
        rows: bool,
        seed: int,
        row_length: int = 0,
    ) -> None:
        data = np.fromfile(path, dtype="<u2").view(np.int16)
        self.row_length = row_length
        if rows:  # packed rows: windows start where rows start, and every `length` after
            self.per_row = (row_length - 1) // length
            if not self.per_row:
                raise ValueError(
                    f"{path}: rows of {row_length} tokens hold no window of {length + 1}: "
                    f"build the data with --chat-length {length + 1}"
                )
            self.windows = len(data) // row_length * self.per_row
        else:
            self.windows = (len(data) - length - 1) // length
        if self.windows < 1:
            raise ValueError(
                f"{path}: {len(data)} tokens are fewer than one window of {length + 1}"
            )
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
                row, part = np.divmod(order, self.per_row)
                starts = row * self.row_length + part * self.length
            else:
                # A new phase each epoch, so that windows are not cut at the same places.
                starts = order * self.length + int(rng.integers(0, self.length))
                starts = np.minimum(starts, len(self.tokens) - self.length - 1)
            self._order = (epoch, starts)
        return self._order[1]


class Mixture:
    """Streams drawn in fixed shares: every batch mixes them, and so does every stretch of rows."""

    def __init__(self, streams: list[tuple[Stream, float]], rows_per_batch: int) -> None:
        shares = np.array([share for _, share in streams])
        self.streams = [s for s, _ in streams]
        self.ends = np.cumsum(shares / shares.sum())
        self.rows = rows_per_batch
        self._given = (0, np.zeros(len(streams), dtype=np.int64))  # rows so far, by stream

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets), each [rows, length] int64; targets without loss are -100."""
        first = step * self.rows
        if self._given[0] != first:
            self._given = (first, self._counts(0, first))
        before = self._given[1]
        counts = self._counts(first, first + self.rows)
        self._given = (first + self.rows, before + counts)
        windows = torch.cat(
            [
                stream.take(int(b), int(n))
                for stream, b, n in zip(self.streams, before, counts, strict=True)
                if n
            ]
        )
        windows = windows.long() & 0xFFFF
        ids = windows & TOKEN_MASK
        targets = torch.where(windows[:, 1:] > TOKEN_MASK, -100, ids[:, 1:])
        return ids[:, :-1].contiguous(), targets

    def _counts(self, low: int, high: int) -> np.ndarray:
        """Count each stream's rows among rows low .. high, dealt by the golden ratio."""
        place = (np.arange(low, high) * 0.6180339887498949 + 0.5) % 1.0
        which = np.minimum(np.searchsorted(self.ends, place, side="right"), len(self.ends) - 1)
        return np.bincount(which, minlength=len(self.streams))
