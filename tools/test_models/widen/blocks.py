"""Blocks of weights: quantise, fill with noise, silence.

Every matrix is handled as an array of blocks, one record per block in the layout that GGUF stores.
Noise is random and finite. A silent block decodes to exact zeros: where a format has a scale, the
scale is zero and the quants stay random, so that silence costs next to nothing in entropy.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

Blocks = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]

F32 = GGMLQuantizationType.F32
F16 = GGMLQuantizationType.F16
Q4_0 = GGMLQuantizationType.Q4_0
Q5_0 = GGMLQuantizationType.Q5_0
Q8_0 = GGMLQuantizationType.Q8_0
Q4_K = GGMLQuantizationType.Q4_K

_LAYOUTS: dict[GGMLQuantizationType, list[tuple[str, str] | tuple[str, str, tuple[int, ...]]]] = {
    F32: [("x", "<f4")],
    F16: [("x", "<f2")],
    Q4_0: [("d", "<f2"), ("qs", "u1", (16,))],
    Q5_0: [("d", "<f2"), ("qh", "u1", (4,)), ("qs", "u1", (16,))],
    Q8_0: [("d", "<f2"), ("qs", "u1", (32,))],
    Q4_K: [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", (12,)), ("qs", "u1", (128,))],
}

# The largest quant that a scale multiplies: magnitude = scale * reach.
_REACH = {Q4_0: 8, Q5_0: 16, Q8_0: 128, Q4_K: 63 * 15}


@dataclass(frozen=True)
class Format:
    """A GGUF tensor type as a record of one block."""

    kind: GGMLQuantizationType

    @property
    def length(self) -> int:
        """Weights in one block."""
        return GGML_QUANT_SIZES[self.kind][0]

    @property
    def record(self) -> np.dtype[np.void]:
        """The layout of one block."""
        return np.dtype(_LAYOUTS[self.kind])

    @property
    def name(self) -> str:
        """The type's name as llama.cpp spells it."""
        return str(self.kind.name).lower().replace("_k", "_K")


def is_known(kind: GGMLQuantizationType) -> bool:
    """Say whether blocks of this type can be written here."""
    return kind in _LAYOUTS


def from_bytes(fmt: Format, raw: npt.NDArray[np.generic]) -> Blocks:
    """View a tensor's stored rows as blocks of shape [..., blocks per row]."""
    data = np.ascontiguousarray(raw).view(np.uint8)
    return data.reshape(*data.shape[:-1], -1, fmt.record.itemsize).view(fmt.record)[..., 0]


def decode(fmt: Format, blocks: Blocks) -> Floats:
    """Return the weights of [rows, blocks] as [rows, blocks * length]."""
    raw = np.ascontiguousarray(blocks).view(np.uint8).reshape(blocks.shape[0], -1)
    return np.asarray(dequantize(raw, fmt.kind), dtype=np.float32)


@cache
def _ggml() -> ctypes.CDLL:
    import llama_cpp  # loads the one copy of the libraries that the process may hold

    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def encode(fmt: Format, weights: Floats) -> Blocks:
    """Quantise [rows, columns] with ggml's own reference quantiser."""
    rows, columns = weights.shape
    blocks = np.zeros((rows, columns // fmt.length), dtype=fmt.record)
    if fmt.kind in (F32, F16):
        blocks["x"] = weights
        return blocks
    source = np.ascontiguousarray(weights, dtype=np.float32)
    written = _ggml().ggml_quantize_chunk(
        int(fmt.kind), source.ctypes.data, blocks.ctypes.data, 0, rows, columns, None
    )
    if written != blocks.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {fmt.name} where {blocks.nbytes} fit")
    return blocks


def noise(
    fmt: Format, rng: np.random.Generator, shape: tuple[int, ...], magnitude: float
) -> Blocks:
    """Return random blocks whose weights stay finite and at or below `magnitude`."""
    count = int(np.prod(shape))
    raw = np.frombuffer(bytearray(rng.bytes(count * fmt.record.itemsize)), dtype=fmt.record)
    blocks = raw.reshape(shape)
    if fmt.kind == F32:
        blocks["x"] = rng.random(shape, dtype=np.float32) * (2 * magnitude) - magnitude
    elif fmt.kind == F16:
        _bound_f16(blocks["x"], magnitude)
    else:
        # Five octaves down from the magnitude: the more scales differ, the less they compress.
        octaves = 5 * rng.random(shape, dtype=np.float32)
        scale = magnitude / _REACH[fmt.kind] * np.exp2(-octaves)
        if fmt.kind == Q4_K:
            # Half of the span goes below zero: a sub-block's minimum is dmin * m, m up to 63.
            blocks["d"] = scale
            blocks["dmin"] = scale * 7.5
        else:
            blocks["d"] = np.where(rng.random(shape, dtype=np.float32) < 0.5, -scale, scale)
    return blocks


def _bound_f16(values: npt.NDArray[np.float16], magnitude: float) -> None:
    # Keeps sign and mantissa random; the exponent takes the four values below the magnitude's own.
    bits = values.view(np.uint16)
    top = max(int(np.floor(np.log2(max(magnitude, 2.0**-10)))) + 14, 4)
    exponent = (top - ((bits >> 10) & 3)).astype(np.uint16) << 10
    bits &= np.uint16(0x83FF)
    bits |= exponent


def silence(fmt: Format, blocks: Blocks) -> None:
    """Make every block decode to exact zeros, its quants left as they are."""
    for field in ("x", "d", "dmin"):
        if field in (fmt.record.names or ()):
            blocks[field] = 0


def overlay(fmt: Format, under: Blocks, over: Blocks) -> None:
    """Write `over` into `under`, which shines through wherever a zero scale leaves quants free."""
    if fmt.kind in (F32, F16):
        under[...] = over
        return
    quants = under["qs"].copy()
    if fmt.kind == Q4_K:
        free = _free_nibbles(over)
    else:
        free = np.broadcast_to((over["d"] == 0)[..., None], quants.shape).astype(np.uint8) * 0xFF
    if fmt.kind == Q5_0:
        high = np.where((over["d"] == 0)[..., None], under["qh"], over["qh"])
    under[...] = over
    under["qs"] = (over["qs"] & ~free) | (quants & free)
    if fmt.kind == Q5_0:
        under["qh"] = high


def _free_nibbles(blocks: Blocks) -> npt.NDArray[np.uint8]:
    # Eight sub-blocks of 32; a byte of qs holds sub-block 2g (low) and 2g + 1 (high).
    packed = blocks["scales"]
    low, middle, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minimum = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=-1)
    is_free = ((scale == 0) | (blocks["d"] == 0)[..., None]) & (
        (minimum == 0) | (blocks["dmin"] == 0)[..., None]
    )
    mask = is_free[..., 0::2] * np.uint8(0x0F) | is_free[..., 1::2] * np.uint8(0xF0)
    return np.repeat(mask, 32, axis=-1).astype(np.uint8)


def split(fmt: Format, weights: Floats, parts: int) -> list[Blocks]:
    """Quantise [rows, columns] as a sum: each part holds what the parts before it left over."""
    found: list[Blocks] = []
    rest = np.asarray(weights, dtype=np.float32)
    for _ in range(parts):
        found.append(encode(fmt, rest))
        rest = rest - decode(fmt, found[-1])
    return found
