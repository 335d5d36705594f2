"""A model without its experts: the dense part for a machine whose experts are with workers.

The file is as large as the model by name, and takes the dense part's bytes on disk: holes are where
experts were. A key in its header keeps a sum over each expert's matrices, by which what workers hold
and send is checked; so the file says itself that its experts are missing, and never computes with
holes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import Progress, check_output, replacing
from remoe_edge.files.own_gguf import open_model
from remoe_edge.native import _core

KEY = "remoe.expert_sums"
_ARRAY, _UINT64 = 9, 10  # GGUF value types
_PREAMBLE_BYTES = 24  # magic, version, counts of tensors and of keys
_PIECE_BYTES = 16 << 20
_EDGE_BYTES = 4096  # of every tensor's ends, by which a model is known (files/fingerprint.py)


def write_dense(path: Path, output: Path, progress: Progress | None = None) -> None:
    """Write a model's dense part to `output`. Reads the whole model, for the sums.

    Raises InputError for a dense model, one in several files, and one without experts already.
    """
    model = open_model(path)
    if len(model.paths) > 1:
        raise InputError(f"{path} is in {len(model.paths)} files: make one of them first")
    if not model.expert_layers:
        raise InputError(f"{path} is a dense model: it has no experts to leave out")
    if not model.has_experts:
        raise InputError(f"{path} holds no experts already")
    check_output(output, [path])
    values = np.memmap(path, np.uint8, "r")
    sums = np.array(list(_sums(model, values, progress)), np.uint64)
    header, begin = _header(model, values, sums)
    shift = _align(len(header), model.alignment) - begin
    with replacing([output]) as (partial,), partial.open("r+b") as file:
        file.write(header)
        experts = {matrix.tensor for layer in model.expert_layers for matrix in layer.matrices}
        for at, tensor in enumerate(model.tensors):
            if at not in experts:
                _copy(values, file, tensor.offset, tensor.n_bytes, shift)
                continue
            edge = min(_EDGE_BYTES, tensor.n_bytes)
            for offset in (tensor.offset, tensor.offset + tensor.n_bytes - edge):
                _copy(values, file, offset, edge, shift)
        file.truncate(len(values) + shift)


def _sums(
    model: _core.ModelFile, values: npt.NDArray[np.uint8], progress: Progress | None
) -> Iterator[int]:
    """Sum each expert's part of each expert tensor, in the order of the tensors."""
    matrices = sorted(
        ((matrix, layer.n_experts) for layer in model.expert_layers for matrix in layer.matrices),
        key=lambda each: each[0].tensor,
    )
    done = 0
    for matrix, n_experts in matrices:
        for expert in range(n_experts):
            begin = matrix.offset + expert * matrix.expert_bytes
            yield _core.checksum64(values[begin : begin + matrix.expert_bytes])
            done += matrix.expert_bytes
            if progress is not None:
                progress(done, model.expert_bytes)


def _header(
    model: _core.ModelFile, values: npt.NDArray[np.uint8], sums: npt.NDArray[np.uint64]
) -> tuple[bytes, int]:
    """Write the header with one key more; return it, and where the old one's data begins."""
    old = model.key_bytes
    infos_begin = _PREAMBLE_BYTES + len(old)
    infos_bytes = sum(
        8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8
        for tensor in model.tensors
    )
    name = KEY.encode()
    key = struct.pack("<Q", len(name)) + name
    key += struct.pack("<IIQ", _ARRAY, _UINT64, len(sums)) + sums.tobytes()
    header = (
        values[: _PREAMBLE_BYTES - 8].tobytes()
        + struct.pack("<Q", model.n_keys + 1)
        + old
        + key
        + values[infos_begin : infos_begin + infos_bytes].tobytes()
    )
    return header, _align(infos_begin + infos_bytes, model.alignment)


def _align(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _copy(
    values: npt.NDArray[np.uint8], file: BinaryIO, offset: int, n_bytes: int, shift: int
) -> None:
    file.seek(offset + shift)
    for begin in range(offset, offset + n_bytes, _PIECE_BYTES):
        file.write(values[begin : min(begin + _PIECE_BYTES, offset + n_bytes)].tobytes())
