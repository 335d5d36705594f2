"""Random tensor bytes in ggml's storage formats.

Every format is filled the same way: all quants random (incompressible), block scales positive or
signed as real files have them, and set so that the decoded values have zero mean and the wanted
standard deviation. What a format decodes to is asked of `gguf.quants`, never assumed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

Bytes: TypeAlias = npt.NDArray[np.uint8]

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class Block:
    """Say where a block keeps its scale.

    `scale` is the offset of the fp16 scale; `offset`, where there is one, that of the fp16
    minimum, which is `centre` times the scale for a zero mean. `signed` formats decode
    symmetrically when the scale changes sign. `int8` are ranges of signed bytes that no
    quantiser fills with -128.
    """

    scale: int
    offset: int | None = None
    centre: float = 0.0
    signed: bool = False
    int8: slice | None = None


Q = GGMLQuantizationType
BLOCKS: dict[GGMLQuantizationType, Block] = {
    Q.Q4_0: Block(0, signed=True),
    Q.Q4_1: Block(0, offset=2, centre=-7.5),
    Q.Q5_0: Block(0, signed=True),
    Q.Q5_1: Block(0, offset=2, centre=-15.5),
    Q.Q8_0: Block(0, signed=True, int8=slice(2, 34)),
    Q.Q4_K: Block(0, offset=2, centre=7.5),
    Q.Q5_K: Block(0, offset=2, centre=15.5),
    Q.Q6_K: Block(208, signed=True, int8=slice(192, 208)),
    Q.IQ4_NL: Block(0, signed=True),
}
# MXFP4 has a power-of-two exponent byte in place of an fp16 scale.
MXFP4_BIAS = 128

# What llama.cpp's own quantiser falls back to when a row is no multiple of 256.
NARROW = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}

FORMATS = (*FLOATS, *BLOCKS, Q.MXFP4)


def format_for(row: int, quant: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the format a row of `row` elements can have: `quant`, or what must replace it."""
    if row % GGML_QUANT_SIZES[quant][0] == 0:
        return quant
    narrow = NARROW.get(quant, Q.F16)
    return narrow if row % GGML_QUANT_SIZES[narrow][0] == 0 else Q.F16


def byte_size(n_elements: int, quant: GGMLQuantizationType) -> int:
    """Return the bytes of `n_elements` elements stored as `quant`."""
    per_block: int
    block_bytes: int
    per_block, block_bytes = GGML_QUANT_SIZES[quant]
    return n_elements // per_block * block_bytes


def random_bytes(
    rng: np.random.Generator, n_elements: int, quant: GGMLQuantizationType, std: float
) -> Bytes:
    """Return the stored bytes of `n_elements` random values of deviation `std`.

    `n_elements` must be a multiple of the format's block length.
    """
    if quant in FLOATS:
        return _floats(rng, n_elements, quant, std)
    per_block, block_bytes = GGML_QUANT_SIZES[quant]
    return _blocks(rng, n_elements // per_block, block_bytes, quant, std / _unit_std(quant))


def _floats(
    rng: np.random.Generator, n_elements: int, quant: GGMLQuantizationType, std: float
) -> Bytes:
    values = rng.standard_normal(n_elements, dtype=np.float32)
    values *= np.float32(std)
    if quant == Q.F32:
        return values.view(np.uint8)
    if quant == Q.F16:
        return values.astype(np.float16).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _blocks(
    rng: np.random.Generator,
    n_blocks: int,
    block_bytes: int,
    quant: GGMLQuantizationType,
    scale: float,
) -> Bytes:
    n_bytes = n_blocks * block_bytes
    words = rng.integers(0, 2**64, size=(n_bytes + 7) // 8, dtype=np.uint64)
    data = words.view(np.uint8)[:n_bytes].reshape(n_blocks, block_bytes)
    if quant == Q.MXFP4:
        # Two neighbouring exponents, mixed so that the mean square comes out as asked.
        low = np.floor(np.log2(scale))
        share = ((scale / 2**low) ** 2 - 1) / 3
        data[:, 0] = MXFP4_BIAS + int(low) + (rng.random(n_blocks) < share)
        return data.reshape(-1)
    block = BLOCKS[quant]
    scales = rng.uniform(0.75, 1.25, n_blocks).astype(np.float32) * np.float32(scale)
    if block.signed:
        scales *= np.where(data[:, block.scale] & 1, np.float32(-1), np.float32(1))
    if block.int8 is not None:
        part = data[:, block.int8].view(np.int8)
        np.maximum(part, -127, out=part)
    half = scales.astype(np.float16)
    data[:, block.scale : block.scale + 2] = half.view(np.uint8).reshape(n_blocks, 2)
    if block.offset is not None:
        low = (half.astype(np.float32) * np.float32(block.centre)).astype(np.float16)
        data[:, block.offset : block.offset + 2] = low.view(np.uint8).reshape(n_blocks, 2)
    return data.reshape(-1)


@cache
def _unit_std(quant: GGMLQuantizationType) -> float:
    """Return the deviation of the values decoded from random blocks of scale one."""
    block_bytes = GGML_QUANT_SIZES[quant][1]
    n_blocks = 512
    data = _blocks(np.random.default_rng(0), n_blocks, block_bytes, quant, 1.0)
    return float(np.std(quants.dequantize(data.reshape(n_blocks, block_bytes), quant)))
