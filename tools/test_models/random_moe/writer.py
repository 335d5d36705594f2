"""Stream a random model to disk: bounded memory, atomic names, one file or split shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, Keys

from . import blocks
from .layout import Layout, Tensor, Value
from .vocabulary import CHAT_TEMPLATE, vocabulary

Formats: TypeAlias = Mapping[str, GGMLQuantizationType]
ALIGNMENT = 32  # GGUF's default
CHUNK_ELEMENTS = 1 << 22  # a multiple of every block length


class WriteError(Exception):
    """Say in one line why a model could not be written."""


def formats(expert: GGMLQuantizationType, dense: GGMLQuantizationType) -> Formats:
    """Return the storage format of each tensor role."""
    plain = GGMLQuantizationType.F32
    return {"plain": plain, "expert": expert, "dense": dense, "embedding": dense, "output": dense}


def tensor_format(tensor: Tensor, table: Formats) -> GGMLQuantizationType:
    """Return the format `tensor` gets, given that rows must hold whole blocks."""
    return blocks.format_for(tensor.ne[0], table[tensor.role])


def tensor_bytes(layout: Layout, table: Formats) -> int:
    """Return the bytes of all tensors, padding included and headers apart."""
    return sum(_padded(_n_bytes(tensor, table)) for tensor in layout.tensors)


def write(
    path: Path,
    layout: Layout,
    table: Formats,
    *,
    seed: int,
    n_split: int = 1,
    metadata: Mapping[str, Value] | None = None,
    durable: bool = False,
    advance: Callable[[int], None] = lambda n_bytes: None,
) -> list[Path]:
    """Write `layout` with random weights and return the files in order.

    With `n_split` above one the files are named as llama.cpp's splitter names them, tensors
    shared out evenly, all metadata in the first. The files appear under their names only when
    complete; `durable` waits until they are on the disk. `advance` hears of every chunk's bytes.
    Raises WriteError.
    """
    names = [path] if n_split == 1 else [_shard(path, i, n_split) for i in range(n_split)]
    if len(layout.tensors) < n_split:
        raise WriteError(f"{path}: {len(layout.tensors)} tensors cannot fill {n_split} files")
    _check_space(path, tensor_bytes(layout, table))
    tensors = list(enumerate(layout.tensors))
    bounds = [len(tensors) * i // n_split for i in range(n_split + 1)]
    with ExitStack() as stack:
        partial = []
        for i, name in enumerate(names):
            temporary = name.with_name(f".{name.name}.part")
            stack.callback(temporary.unlink, missing_ok=True)
            partial.append(temporary)
            header = _header(layout, metadata or {}, i, n_split)
            own = tensors[bounds[i] : bounds[i + 1]]
            try:
                _write_shard(temporary, header, own, table, seed, durable, advance)
            except OSError as error:
                raise WriteError(f"{name}: {error.strerror}; nothing was kept") from error
        for temporary, name in zip(partial, names, strict=True):
            temporary.replace(name)
    return names


def _shard(path: Path, index: int, n_split: int) -> Path:
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{n_split:05d}.gguf")


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _n_bytes(tensor: Tensor, table: Formats) -> int:
    return blocks.byte_size(tensor.n_elements, tensor_format(tensor, table))


def _check_space(path: Path, need: int) -> None:
    try:
        free = shutil.disk_usage(path.resolve().parent).free
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error
    if need > free:
        raise WriteError(
            f"{path}: needs {need / 2**20:.0f} MiB but {free / 2**20:.0f} MiB are free; "
            "write elsewhere or ask for fewer layers"
        )


def _header(layout: Layout, metadata: Mapping[str, Value], index: int, n_split: int) -> GGUFWriter:
    header = GGUFWriter(None, layout.arch)
    if index == 0:
        _add_metadata(header, layout, metadata)
    else:
        header.kv_data[0].clear()
    if n_split > 1:
        header.add_uint16(Keys.Split.LLM_KV_SPLIT_NO, index)
        header.add_uint16(Keys.Split.LLM_KV_SPLIT_COUNT, n_split)
        header.add_int32(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(layout.tensors))
    return header


def _write_shard(
    path: Path,
    header: GGUFWriter,
    tensors: Sequence[tuple[int, Tensor]],
    table: Formats,
    seed: int,
    durable: bool,
    advance: Callable[[int], None],
) -> None:
    for _, tensor in tensors:
        header.add_tensor_info(
            tensor.name,
            tuple(reversed(tensor.ne)),
            np.dtype(np.float32),
            _n_bytes(tensor, table),
            raw_dtype=tensor_format(tensor, table),
        )
    header.write_header_to_file(path)
    try:
        header.write_kv_data_to_file()
        header.write_ti_data_to_file()
        assert header.fout is not None
        file = header.fout[0]
        _pad(file)
        for index, tensor in tensors:
            for chunk in _chunks(tensor, table, seed, index):
                file.write(chunk.data)
                advance(chunk.nbytes)
            _pad(file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    finally:
        header.close()


def _pad(file: IO[bytes]) -> None:
    at = file.tell()
    file.write(bytes(_padded(at) - at))


def _chunks(tensor: Tensor, table: Formats, seed: int, index: int) -> Iterator[blocks.Bytes]:
    quant = tensor_format(tensor, table)
    rng = np.random.Generator(np.random.SFC64([seed, index]))
    for start in range(0, tensor.n_elements, CHUNK_ELEMENTS):
        n_elements = min(CHUNK_ELEMENTS, tensor.n_elements - start)
        data = blocks.random_bytes(rng, n_elements, quant, tensor.std)
        if tensor.mean:
            data = (data.view(np.float32) + np.float32(tensor.mean)).view(np.uint8)
        yield data


def _add_metadata(writer: GGUFWriter, layout: Layout, extra: Mapping[str, Value]) -> None:
    for key, value in {**layout.metadata, **extra}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    words = vocabulary(layout.shape.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    writer.add_bos_token_id(words.end_of_text)
    writer.add_eos_token_id(words.turn_end)
    writer.add_pad_token_id(words.end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
