"""The small model: what is read from its file, and what is refused."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from remoe_edge.errors import ModelError, UnsupportedError
from widen.blocks import Format, is_known

ARCH = "qwen3moe"

TOP_TENSORS = ("token_embd.weight", "output_norm.weight")
LAYER_TENSORS = (
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_q_norm.weight",
    "attn_k_norm.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_exps.weight",
    "ffn_up_exps.weight",
    "ffn_down_exps.weight",
)


@dataclass(frozen=True)
class Tensor:
    """A stored tensor: its type and its rows as bytes (or floats where the type is F32, F16)."""

    name: str
    fmt: Format
    shape: tuple[int, ...]  # outermost first
    data: npt.NDArray[np.generic]

    def expert(self, index: int) -> npt.NDArray[np.float32]:
        """Return one expert's matrix [rows, columns] as floats."""
        weights = np.asarray(dequantize(self.data[index], self.fmt.kind), dtype=np.float32)
        if not np.isfinite(weights).all():
            raise ModelError(f"{self.name}, expert {index}: holds a weight that is not finite")
        return weights


class Source:
    """A small qwen3moe GGUF, mapped into memory and checked; read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path, "r")
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file") from None
        except (ValueError, IndexError, OSError, KeyError) as error:
            raise ModelError(f"{path}: not a readable GGUF file ({error})") from None
        arch = self.key("general.architecture", "?")
        if arch != ARCH:
            raise UnsupportedError(f"{path}: architecture {arch}; only {ARCH} can be widened")
        self.layers = int(self.key(f"{ARCH}.block_count"))
        self.embed = int(self.key(f"{ARCH}.embedding_length"))
        self.heads = int(self.key(f"{ARCH}.attention.head_count"))
        self.top_k = int(self.key(f"{ARCH}.expert_used_count"))
        self.experts = int(self.key(f"{ARCH}.expert_count"))
        self.epsilon = float(self.key(f"{ARCH}.attention.layer_norm_rms_epsilon"))
        self._tensors = {t.name: t for t in self._reader.tensors}
        self._refuse_surprises()
        self.expert_ffn = int(self.tensor("blk.0.ffn_down_exps.weight").shape[-1])

    def key(self, name: str, default: Any = None) -> Any:
        """Return a key's value, `default` where it is absent; absent without one is an error."""
        field = self._reader.get_field(name)
        if field is None:
            if default is None:
                raise ModelError(f"{self.path}: the key {name} is missing")
            return default
        return field.contents()

    def fields(self) -> list[tuple[str, Any, list[Any]]]:
        """Every key as (name, value, types), in file order, less what the header says anyway."""
        return [
            (name, field.contents(), list(field.types))
            for name, field in self._reader.fields.items()
            if not name.startswith("GGUF.") and name != "general.architecture"
        ]

    def has(self, name: str) -> bool:
        """Say whether the file holds this tensor."""
        return name in self._tensors

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, or say that it is missing or of a type that cannot be widened."""
        found = self._tensors.get(name)
        if found is None:
            raise ModelError(f"{self.path}: the tensor {name} is missing")
        kind = GGMLQuantizationType(found.tensor_type)
        if not name.endswith("_exps.weight") and not is_known(kind):
            raise UnsupportedError(
                f"{self.path}: {name} is {kind.name}; export the source as F16, Q8_0 or Q4_0"
            )
        shape = tuple(int(n) for n in reversed(found.shape.tolist()))
        return Tensor(name, Format(kind), shape, found.data)

    def sha256(self) -> str:
        """Return the file's fingerprint."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _refuse_surprises(self) -> None:
        known = {*TOP_TENSORS, "output.weight"}
        known |= {f"blk.{i}.{name}" for i in range(self.layers) for name in LAYER_TENSORS}
        for name in self._tensors:
            if name not in known:
                what = re.sub(r"^blk\.\d+\.", "", name)
                raise UnsupportedError(f"{self.path}: {name}: no rule says how to widen a {what}")
        for name in known - {"output.weight"}:
            if name not in self._tensors:
                raise ModelError(f"{self.path}: the tensor {name} is missing")
