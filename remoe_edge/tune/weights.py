"""A model's weights, one tensor at a time, under GGUF names, from a GGUF or a Hugging Face folder.

Nothing is kept: a 16B model never stands in memory twice, and the decoder decides where each tensor
goes and in which precision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from remoe_edge.convert.names import tensor_name_map
from remoe_edge.errors import InputError, ModelError, UnsupportedError
from remoe_edge.tune.architecture import Shape, shape_from_gguf, shape_from_hf

_SHARD = re.compile(r"^(.*)-00001-of-(\d{5})\.gguf$")
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")
_FUSED = re.compile(r"^(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")


class WeightSource(Protocol):
    """Where a decoder gets its tensors."""

    path: str
    shape: Shape

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor of that GGUF name in PyTorch's axis order, or None if there is none."""
        ...


def open_weights(path: str | Path) -> WeightSource:
    """Open a GGUF file (the first of its shards, if split) or a Hugging Face folder."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such model; name a GGUF file or a Hugging Face folder")
    return HfWeights(path) if path.is_dir() else GgufWeights(path)


class GgufWeights:
    """The tensors of a GGUF, dequantised to float32 one by one (float16 and bfloat16 stay)."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = str(path)
        self._tensors: dict[str, Any] = {}
        self.keys: dict[str, Any] = {}
        self._dequantize: Callable[[Any, Any], Any] = gguf.dequantize
        for number, shard in enumerate(_shards(path)):
            try:
                reader = gguf.GGUFReader(shard)
            except (OSError, ValueError, KeyError, IndexError) as error:
                raise ModelError(f"{shard}: not a readable GGUF: {error}") from error
            if number == 0:
                self.keys = {
                    name: field.contents()
                    for name, field in reader.fields.items()
                    if not name.startswith("tokenizer.ggml.")
                }
            self._tensors.update({tensor.name: tensor for tensor in reader.tensors})
        self.shape = shape_from_gguf(self.keys, self.path)

    def tensor(self, name: str) -> Tensor | None:
        """Dequantise one tensor; see `WeightSource`."""
        found = self._tensors.get(name)
        if found is None:
            return None
        # A file cut short would otherwise surface as a bus error deep inside the loop.
        values = self._dequantize(found.data, found.tensor_type)
        dims = tuple(int(n) for n in reversed(found.shape.tolist()))
        return torch.from_numpy(np.array(values, dtype=np.float32).reshape(dims))


def _shards(path: Path) -> list[Path]:
    match = _SHARD.match(path.name)
    if match is None:
        return [path]
    stem, count = match.groups()
    shards = [path.with_name(f"{stem}-{n:05d}-of-{count}.gguf") for n in range(1, int(count) + 1)]
    for shard in shards:
        if not shard.exists():
            raise ModelError(f"{shard}: this shard of the model is missing")
    return shards


class HfWeights:
    """The tensors of a transformers folder's safetensors, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        import gguf

        try:
            from transformers import AutoConfig
        except ImportError as error:
            raise UnsupportedError(
                "a Hugging Face folder needs transformers: pip install 'remoe-edge[tune]'"
            ) from error
        self.path = str(path)
        if not (path / "config.json").exists():
            raise InputError(f"{path}: no config.json: not a Hugging Face model folder")
        try:
            config = AutoConfig.from_pretrained(path)
        except (ValueError, OSError, KeyError) as error:
            raise ModelError(f"{path}/config.json: {_first_line(error)}") from error
        self.shape = shape_from_hf(config, self.path)
        arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == self.shape.architecture)
        names = tensor_name_map(arch, self.shape.n_layers)
        self._handles: dict[Path, Any] = {}
        self._found: dict[str, Callable[[], Tensor]] = {}
        experts: dict[str, dict[int, str]] = {}
        self._files = _hf_files(path)
        for key in self._files:
            match = _EXPERT.match(key)
            if match is not None:
                stem, number, matrix = match.groups()
                experts.setdefault(f"{stem}.{matrix}", {})[int(number)] = key
                continue
            match = _FUSED.match(key)
            if match is not None:
                self._add_fused(names, *match.groups())
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is not None:
                self._found[name] = partial(self._read, key)
        for stem, numbered in experts.items():
            if sorted(numbered) != list(range(self.shape.n_experts)):
                raise ModelError(
                    f"{path}: {stem} has {len(numbered)} experts, expected {self.shape.n_experts}"
                )
            keys = [numbered[n] for n in range(self.shape.n_experts)]
            self._found[f"{names.get_name(stem)}.weight"] = partial(self._stacked, keys)

    def tensor(self, name: str) -> Tensor | None:
        """Read one tensor; see `WeightSource`."""
        read = self._found.get(name)
        return None if read is None else read()

    def _add_fused(self, names: Any, stem: str, matrix: str) -> None:
        key = f"{stem}.{matrix}"
        if matrix == "down_proj":
            self._found[f"{names.get_name(key)}.weight"] = partial(self._read, key)
            return
        for part, half in ((0, "gate_proj"), (1, "up_proj")):
            name = f"{names.get_name(f'{stem}.{half}')}.weight"
            self._found[name] = partial(self._half, key, part)

    def _stacked(self, keys: list[str]) -> Tensor:
        return torch.stack([self._read(key) for key in keys])

    def _half(self, key: str, part: int) -> Tensor:
        return self._read(key).chunk(2, dim=1)[part]

    def _read(self, key: str) -> Tensor:
        from safetensors import safe_open

        file = self._files[key]
        if file not in self._handles:
            self._handles[file] = safe_open(file, framework="pt")
        tensor: Tensor = self._handles[file].get_tensor(key)
        return tensor


def _hf_files(path: Path) -> dict[str, Path]:
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    try:
        if index.exists():
            mapping = json.loads(index.read_text())["weight_map"]
            files = {key: path / name for key, name in mapping.items()}
            for file in set(files.values()):
                if not file.exists():
                    raise ModelError(f"{file}: this shard of the model is missing")
            return files
        single = path / "model.safetensors"
        if not single.exists():
            raise ModelError(f"{path}: neither model.safetensors nor its index; convert it first")
        with safe_open(single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError
    ) as error:  # fmt: skip
        raise ModelError(f"{path}: damaged safetensors or index: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
