"""The metadata and tensors of one model, before any byte of it exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod, sqrt
from typing import TypeAlias

from gguf import MODEL_TENSOR as T
from gguf import TENSOR_NAMES

from .shape import Shape

Value: TypeAlias = bool | int | float | str | list[int] | list[bool] | list[str]


@dataclass(frozen=True)
class Tensor:
    """Describe one tensor.

    `ne` is in ggml's order (row length first). `role` decides the storage format: "expert",
    "dense", "embedding", "output" are quantised as asked, "plain" is always F32. Values are
    `mean` plus noise of deviation `std`.
    """

    name: str
    ne: tuple[int, ...]
    role: str
    std: float
    mean: float = 0.0

    @property
    def n_elements(self) -> int:
        """Return the number of elements."""
        return prod(self.ne)


@dataclass
class Layout:
    """Collect the metadata and tensors of one model, in file order."""

    arch: str
    shape: Shape
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def put(self, key: str, value: Value) -> None:
        """Set a metadata key, given as one of `gguf.Keys` with its {arch} still open."""
        self.metadata[key.format(arch=self.arch)] = value

    def _name(self, tensor: T, layer: int | None, suffix: str) -> str:
        name = TENSOR_NAMES[tensor].format(bid=layer)
        return f"{name}.{suffix}" if suffix else name

    def has(self, tensor: T, layer: int | None) -> bool:
        """Say whether the weight of `tensor` in `layer` was added."""
        name = self._name(tensor, layer, "weight")
        return any(added.name == name for added in self.tensors)

    def matrix(
        self,
        tensor: T,
        layer: int | None,
        *ne: int,
        role: str = "dense",
        gain: float = 1.0,
    ) -> None:
        """Add a weight whose output has about `gain` times the deviation of its input."""
        name = self._name(tensor, layer, "weight")
        self.tensors.append(Tensor(name, ne, role, gain / sqrt(ne[0])))

    def plain(
        self,
        tensor: T,
        layer: int | None,
        *ne: int,
        std: float,
        mean: float = 0.0,
        suffix: str = "weight",
    ) -> None:
        """Add what is no matrix, kept in F32."""
        self.tensors.append(Tensor(self._name(tensor, layer, suffix), ne, "plain", std, mean))

    def norm(self, tensor: T, layer: int | None, *ne: int) -> None:
        """Add a normalisation weight, near one."""
        self.plain(tensor, layer, *ne, std=0.1, mean=1.0)

    def bias(self, tensor: T, layer: int | None, *ne: int) -> None:
        """Add a bias."""
        self.plain(tensor, layer, *ne, std=0.1, suffix="bias")
