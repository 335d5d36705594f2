"""The twin's file, piece by piece: one tensor after the other, one chunk in memory at a time."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from remoe_edge.errors import RemoeError
from widen import matrices
from widen.blocks import F16, F32, Q4_0, Q4_K, Q8_0, Blocks, Format, from_bytes
from widen.plan import Layer, Plan
from widen.source import ARCH, Source, Tensor

_ROWS_AT_ONCE = 2048
_FILE_TYPES = {F16: 1, Q4_0: 2, Q8_0: 7, Q4_K: 14}


@dataclass(frozen=True)
class Piece:
    """One tensor of the twin: where it goes and how its blocks are made."""

    name: str
    fmt: Format
    shape: tuple[int, ...]
    chunks: Callable[[np.random.Generator], Iterator[Blocks]]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file, without the padding behind it."""
        return int(np.prod(self.shape)) // self.fmt.length * self.fmt.record.itemsize


def pieces(source: Source, plan: Plan) -> list[Piece]:
    """List the twin's tensors in file order."""
    embedding = source.tensor("token_embd.weight")
    # A tied model reads its embedding as the output too; as a reader it must hear one copy only.
    output = source.tensor("output.weight") if source.has("output.weight") else embedding
    found = [
        _dense(embedding, embedding.name, plan, matrices.hold_hidden),
        _norm(source.tensor("output_norm.weight"), "output_norm.weight", plan),
        _dense(output, "output.weight", plan, matrices.read_hidden),
    ]
    for index, layer in enumerate(plan.layers):
        found += _layer(source, plan, index, layer)
    return found


def _layer(source: Source, plan: Plan, index: int, layer: Layer) -> list[Piece]:
    def old(name: str) -> Tensor:
        return source.tensor(f"blk.{layer.source}.{name}.weight")

    def new(name: str) -> str:
        return f"blk.{index}.{name}.weight"

    found = [_norm(old("attn_norm"), new("attn_norm"), plan)]
    for name in ("attn_q", "attn_k", "attn_v"):
        found.append(_dense(old(name), new(name), plan, matrices.read_hidden))
    for name in ("attn_q_norm", "attn_k_norm"):
        found.append(_same(old(name), new(name)))
    found += [
        _attention_output(old("attn_output"), new("attn_output"), plan, layer),
        _norm(old("ffn_norm"), new("ffn_norm"), plan),
        _router(old("ffn_gate_inp"), new("ffn_gate_inp"), plan, layer),
    ]
    for name in ("gate", "up", "down"):
        found.append(_experts(old(f"ffn_{name}_exps"), new(f"ffn_{name}_exps"), plan, layer))
    return found


def _dense(tensor: Tensor, name: str, plan: Plan, widen: Callable[..., Blocks]) -> Piece:
    def chunks(rng: np.random.Generator) -> Iterator[Blocks]:
        for row in range(0, tensor.shape[0], _ROWS_AT_ONCE):
            rows = from_bytes(tensor.fmt, tensor.data[row : row + _ROWS_AT_ONCE])
            yield widen(tensor.fmt, rows, plan.hidden, rng)

    return Piece(name, tensor.fmt, (tensor.shape[0], plan.hidden.wide), chunks)


def _router(tensor: Tensor, name: str, plan: Plan, layer: Layer) -> Piece:
    def chunks(rng: np.random.Generator) -> Iterator[Blocks]:
        rows = from_bytes(tensor.fmt, tensor.data)
        # An echo shuffles the experts' names: alike in habits, never the same choice as its source.
        rows = rows[rng.permutation(len(rows))] if layer.is_echo else rows
        yield matrices.read_hidden(tensor.fmt, rows, plan.hidden, rng)

    return Piece(name, tensor.fmt, (tensor.shape[0], plan.hidden.wide), chunks)


def _attention_output(tensor: Tensor, name: str, plan: Plan, layer: Layer) -> Piece:
    def chunks(rng: np.random.Generator) -> Iterator[Blocks]:
        rows = from_bytes(tensor.fmt, tensor.data)
        yield matrices.write_hidden(tensor.fmt, rows, plan.hidden, rng, is_silent=layer.is_echo)

    return Piece(name, tensor.fmt, (plan.hidden.wide, tensor.shape[1]), chunks)


def _norm(tensor: Tensor, name: str, plan: Plan) -> Piece:
    fmt = Format(F32)

    def chunks(rng: np.random.Generator) -> Iterator[Blocks]:
        weights = np.asarray(tensor.data, dtype=np.float32)
        yield from_bytes(fmt, matrices.norm_weights(weights, plan.hidden)[None])

    return Piece(name, fmt, (plan.hidden.wide,), chunks)


def _same(tensor: Tensor, name: str) -> Piece:
    def chunks(rng: np.random.Generator) -> Iterator[Blocks]:
        yield from_bytes(tensor.fmt, np.asarray(tensor.data)[None])

    return Piece(name, tensor.fmt, tensor.shape, chunks)


def _experts(tensor: Tensor, name: str, plan: Plan, layer: Layer) -> Piece:
    is_down = "ffn_down" in name
    fmt = plan.down if is_down else plan.gate_up
    rows, columns = plan.units.wide, plan.hidden.wide
    if is_down:
        rows, columns = columns, rows

    def chunks(rng: np.random.Generator) -> Iterator[Blocks]:
        for expert in range(tensor.shape[0]):
            weights = tensor.expert(expert)
            if is_down:
                yield matrices.down(
                    fmt, weights, plan.hidden, plan.units, rng, is_silent=layer.is_echo
                )
            elif "ffn_up" in name:
                yield matrices.up(fmt, weights, plan.hidden, plan.units, rng)
            else:
                yield matrices.gate(fmt, weights, plan.hidden, plan.units, rng)

    return Piece(name, fmt, (tensor.shape[0], rows, columns), chunks)


def write(
    source: Source,
    plan: Plan,
    path: Path,
    seed: int,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Write the twin beside `path`, then rename it there; returns its size in bytes.

    Whatever ends this early, an error or Ctrl-C, leaves no file behind. `progress` is told of every
    `count` bytes written.
    """
    todo = pieces(source, plan)
    part = path.with_name(path.name + ".part")
    try:
        writer = _metadata(source, plan, todo, part, seed)
        with part.open("ab") as file:
            _pad(file, writer.data_alignment)
            for piece in todo:
                rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(piece.name.encode())]))
                start = file.tell()
                for chunk in piece.chunks(rng):
                    file.write(np.ascontiguousarray(chunk).view(np.uint8).data)
                    progress(chunk.nbytes)
                if file.tell() - start != piece.size_bytes:
                    raise RuntimeError(f"{piece.name}: wrote {file.tell() - start} bytes")
                _pad(file, writer.data_alignment)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RemoeError(f"{path}: {error.strerror or error}; nothing was kept") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return path.stat().st_size


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _metadata(source: Source, plan: Plan, todo: list[Piece], path: Path, seed: int) -> GGUFWriter:
    writer = GGUFWriter(path, ARCH)
    writer.data_alignment = int(source.key("general.alignment", writer.data_alignment))
    for key, value, types in source.fields():
        if types[0] == GGUFValueType.ARRAY and not value:
            continue  # gguf writes no empty array; its absence means the same
        sub_type = types[-1] if types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, types[0], sub_type)
    name = str(source.key("general.name", source.path.stem))
    head = source.embed // source.heads
    echoes = [index for index, layer in enumerate(plan.layers) if layer.is_echo]
    u32, f32, text = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING
    changed = {
        "general.name": (f"{name} widened to {plan.hidden.wide} x {plan.units.wide}", text),
        "general.file_type": (_FILE_TYPES[plan.gate_up.kind], u32)
        if plan.gate_up.kind in _FILE_TYPES
        else (8, u32),
        "general.quantization_version": (2, u32),
        f"{ARCH}.block_count": (len(plan.layers), u32),
        f"{ARCH}.embedding_length": (plan.hidden.wide, u32),
        f"{ARCH}.expert_feed_forward_length": (plan.units.wide, u32),
        f"{ARCH}.attention.key_length": (
            int(source.key(f"{ARCH}.attention.key_length", head)),
            u32,
        ),
        f"{ARCH}.attention.value_length": (
            int(source.key(f"{ARCH}.attention.value_length", head)),
            u32,
        ),
        f"{ARCH}.attention.layer_norm_rms_epsilon": (
            source.epsilon * plan.hidden.energy,
            f32,
        ),
        "remoe_edge.widened_from": (name, text),
        "remoe_edge.widened_from_sha256": (source.sha256(), text),
        "remoe_edge.widened_from_embedding_length": (source.embed, u32),
        "remoe_edge.widened_from_expert_feed_forward_length": (source.expert_ffn, u32),
        "remoe_edge.widened_from_block_count": (source.layers, u32),
        "remoe_edge.widened_hidden_copies": (plan.hidden.copies, u32),
        "remoe_edge.widened_hidden_stride": (plan.hidden.stride, u32),
        "remoe_edge.widened_hidden_parts": (plan.hidden.parts, u32),
        "remoe_edge.widened_unit_copies": (plan.units.copies, u32),
        "remoe_edge.widened_unit_stride": (plan.units.stride, u32),
        "remoe_edge.widened_seed": (seed, u32),
    }
    writer.kv_data[0].pop("general.size_label", None)  # the source's, no longer true
    for key, (value, kind) in changed.items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)
    if echoes:
        writer.add_array("remoe_edge.widened_echo_layers", echoes)
    for piece in todo:
        # The plain type's byte count is given by hand, so any numpy type but uint8 keeps the shape.
        writer.add_tensor_info(
            piece.name, piece.shape, np.dtype(np.float32), piece.size_bytes, piece.fmt.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return writer
