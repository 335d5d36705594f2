"""Read safetensors files with numpy alone, every offset checked against the file.

The format: 8 bytes of header length, a JSON header, then the tensors' bytes.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from remoe_edge.errors import InputError
from remoe_edge.files.tensor_values import read_range

_MAX_HEADER_BYTES = 100_000_000
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class Entry:
    """One tensor's place: `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A checked header; tensors are read on demand."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Read and check the header; raise InputError for anything that is no safetensors file."""
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        n_bytes = path.stat().st_size
        if n_bytes < 8:
            raise InputError(f"{path} is not a safetensors file: it has {n_bytes} bytes")
        header_bytes = int.from_bytes(read_range(os.fspath(path), 0, 8), "little")
        if not 2 <= header_bytes <= min(n_bytes - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{path} is not a safetensors file: no header at its start")
        try:
            raw = read_range(os.fspath(path), 8, header_bytes)
            header = json.loads(raw, object_pairs_hook=_unique)
        except _DuplicateKeyError as error:
            raise InputError(f"{path}: its header has {error} twice") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a safetensors file: its header is not JSON") from error
        if not isinstance(header, dict):
            raise InputError(f"{path} is not a safetensors file: its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise InputError(f"{path}: __metadata__ is not a table of strings")
        data = 8 + header_bytes
        entries = {
            name: _entry(path, name, described, data, n_bytes) for name, described in header.items()
        }
        _check_apart(path, entries)
        return cls(path, entries, metadata)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor of dtype F32, F16, BF16 or F64 as float32."""
        entry = self.entries[name]
        if entry.dtype not in _FLOATS:
            raise InputError(
                f"{self.path}: {name!r} is {entry.dtype}, routers are F32, F16 or BF16"
            )
        return decode(read_range(os.fspath(self.path), entry.offset, entry.n_bytes), entry)


def decode(raw: bytes, entry: Entry) -> npt.NDArray[np.float32]:
    """Return a float tensor's bytes as float32; what is too large for it becomes infinite."""
    if entry.dtype == "BF16":
        bits = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(entry.shape)
    values = np.frombuffer(raw, dtype=_FLOATS[entry.dtype]).reshape(entry.shape)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def encode(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Return values as bytes of a safetensors dtype, rounded to nearest."""
    if dtype == "BF16":
        encoded = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType.BF16)
        return np.asarray(encoded).tobytes()
    if dtype not in _FLOATS:
        raise InputError(f"routers cannot be written as {dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values).astype(_FLOATS[dtype]).tobytes()


def _entry(path: Path, name: str, described: object, data: int, file_bytes: int) -> Entry:
    problem = InputError(f"{path}: the header's entry for {name!r} is damaged")
    if not isinstance(described, dict):
        raise problem
    dtype, shape, span = (described.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise problem
    if not _whole_numbers(shape) or not _whole_numbers(span):
        raise problem
    assert isinstance(shape, list)
    assert isinstance(span, list)
    if len(span) != 2 or not 0 <= span[0] <= span[1] <= file_bytes - data:
        raise problem
    if math.prod(shape) * _DTYPE_BYTES[dtype] != span[1] - span[0]:
        raise problem
    return Entry(dtype, tuple(shape), data + span[0], span[1] - span[0])


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a table of a JSON object's pairs: of two entries of one name either could be meant."""
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(repr(next(name for name in names if names.count(name) > 1)))
    return table


def _check_apart(path: Path, entries: dict[str, Entry]) -> None:
    """Refuse tensors that share bytes: writing one would change the other."""
    filled = [item for item in entries.items() if item[1].n_bytes]
    filled.sort(key=lambda item: item[1].offset)
    for (name, entry), (other, after) in pairwise(filled):
        if entry.offset + entry.n_bytes > after.offset:
            raise InputError(f"{path}: {name!r} and {other!r} overlap")


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
