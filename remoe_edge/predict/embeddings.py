"""A model's own token embeddings, as unit vectors, read row by row from its GGUF."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from remoe_edge.errors import InputError, ModelError, UnsupportedError
from remoe_edge.files.tensor_values import read_range
from remoe_edge.native import _core

Floats = npt.NDArray[np.float32]

TENSOR = "token_embd.weight"
_MOST_KNOWN = 1024


class TokenEmbeddings:
    """Give unit vectors for token ids; rows are read as they are asked for, and some kept."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Find the embedding in a GGUF. Raises ModelError where there is none."""
        file = _core.ModelFile.open(os.fspath(path))
        tensor = file.find(TENSOR)
        if tensor is None or len(tensor.shape) != 2:
            raise ModelError(f"{os.fspath(path)} has no matrix {TENSOR}")
        self.width, self.n_vocab = tensor.shape
        self._kind = GGMLQuantizationType(tensor.type)
        self._path = file.paths[tensor.shard]
        self._offset = tensor.offset
        self._row_bytes = tensor.n_bytes // self.n_vocab
        self._known: dict[int, Floats] = {}

    def unit(self, tokens: Sequence[int]) -> Floats:
        """Return the unit vectors of tokens, [n, width]; a row of zeros stays zeros.

        Raises InputError for a token outside the vocabulary, ModelError for one whose row is no numbers.
        """
        if not tokens:
            return np.zeros((0, self.width), np.float32)
        return np.stack([self._row(int(token)) for token in tokens])

    def _row(self, token: int) -> Floats:
        row = self._known.get(token)
        if row is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            row = self._known[token] = self._read(token)
        return row

    def _read(self, token: int) -> Floats:
        if not 0 <= token < self.n_vocab:
            raise InputError(f"token {token} lies outside the vocabulary of {self.n_vocab}")
        raw = read_range(self._path, self._offset + token * self._row_bytes, self._row_bytes)
        row = self._decode(raw)
        length = float(np.linalg.norm(row))
        if not np.isfinite(length):
            raise ModelError(f"{TENSOR}: the embedding of token {token} holds what is no number")
        return row / np.float32(length) if length > 0 else row

    def _decode(self, raw: bytes) -> Floats:
        if self._kind == GGMLQuantizationType.F32:
            return np.frombuffer(raw, dtype="<f4").astype(np.float32)
        if self._kind == GGMLQuantizationType.F16:
            return np.frombuffer(raw, dtype="<f2").astype(np.float32)
        try:
            values = quants.dequantize(np.frombuffer(raw, np.uint8), self._kind)
        except NotImplementedError as error:
            raise UnsupportedError(f"{TENSOR}: {self._kind.name} cannot be decoded") from error
        return np.asarray(values, np.float32).reshape(-1)
