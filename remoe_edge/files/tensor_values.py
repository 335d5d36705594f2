"""Read tensors out of GGUF files, and turn their bytes into float32 and back."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from remoe_edge.errors import ReadError, UnsupportedError
from remoe_edge.native import _core


def read_range(path: str, offset: int, n_bytes: int) -> bytes:
    """Return exactly `n_bytes` of a file; raise ReadError naming path and offset otherwise."""
    pieces = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while n_bytes > 0:
                piece = os.pread(descriptor, n_bytes, offset)
                if not piece:
                    raise ReadError(f"{path} ends at {offset}, {n_bytes} bytes too early")
                pieces.append(piece)
                offset += len(piece)
                n_bytes -= len(piece)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ReadError(f"cannot read {path} at offset {offset}: {error.strerror}") from error
    return b"".join(pieces)


def read_tensor(model: _core.ModelFile, tensor: _core.Tensor) -> bytes:
    """Return a tensor's bytes as they stand in the file."""
    return read_range(model.paths[tensor.shard], tensor.offset, tensor.n_bytes)


def to_float32(raw: bytes, tensor: _core.Tensor) -> npt.NDArray[np.float32]:
    """Decode bytes of a tensor's type; shape as in numpy, the fastest-varying axis last."""
    kind = GGMLQuantizationType(tensor.type)
    shape = tuple(reversed(tensor.shape))
    if kind == GGMLQuantizationType.F32:
        return np.frombuffer(raw, dtype="<f4").reshape(shape)
    if kind == GGMLQuantizationType.F16:
        return np.frombuffer(raw, dtype="<f2").reshape(shape).astype(np.float32)
    try:
        values = quants.dequantize(np.frombuffer(raw, dtype=np.uint8), kind)
    except NotImplementedError as error:
        raise UnsupportedError(f"'{tensor.name}': {kind.name} cannot be decoded") from error
    return np.asarray(values, dtype=np.float32).reshape(shape)


def from_float32(values: npt.NDArray[np.float32], tensor: _core.Tensor) -> bytes:
    """Encode values as a tensor's type; exact for F32, rounded to nearest for the rest."""
    kind = GGMLQuantizationType(tensor.type)
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(values, dtype="<f4").tobytes()
    try:
        encoded = quants.quantize(np.ascontiguousarray(values, dtype=np.float32), kind)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"'{tensor.name}' is {kind.name} in the base model, which cannot be encoded here; "
            "use a base whose routers are F32, as llama.cpp's quantiser leaves them"
        ) from error
    return np.asarray(encoded).tobytes()
