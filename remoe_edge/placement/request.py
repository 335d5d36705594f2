"""What a placement is made from: the model's shape, the main host's speed, the network, the targets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from remoe_edge.errors import InputError

_MOST = 1e18


def _check(value: Any, *, above_zero: tuple[str, ...] = ()) -> None:
    """Refuse fields that are no numbers, below zero, or zero where there must be something."""
    for each in fields(value):
        found = getattr(value, each.name)
        if found is None and "None" in str(each.type):
            continue
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise InputError(f"{each.name} is {found!r}, which is no number")
        if not abs(found) < _MOST:  # a NaN, too
            raise InputError(f"{each.name} is no number that anything here has")
        if each.type == "int" and not isinstance(found, int):
            raise InputError(f"{each.name} is {found:g}; it counts, and must be whole")
        if found < 0 or (found == 0 and each.name in above_zero):
            least = "above 0" if each.name in above_zero else "0 or more"
            raise InputError(f"{each.name} is {found:g}; it must be {least}")


@dataclass(frozen=True)
class Shape:
    """Hold a model's MoE layers (L, K experts each, top-k) and sizes, in bytes.

    fixed_bytes: all that the main host holds beside experts. gpu_bytes: how much of that lies on a
    GPU. row_bytes: one token's activations, to a function and back together.
    """

    n_layers: int
    n_experts: int
    top_k: int
    expert_bytes: int
    fixed_bytes: int
    row_bytes: int
    gpu_bytes: int = 0

    def __post_init__(self) -> None:
        _check(self, above_zero=("n_layers", "n_experts", "top_k", "expert_bytes", "row_bytes"))
        if self.top_k > self.n_experts:
            raise InputError(f"top-{self.top_k} of {self.n_experts} experts")
        if self.gpu_bytes > self.fixed_bytes:
            raise InputError("gpu_bytes are part of fixed_bytes and cannot be more")

    def main_bytes(self, n_local: int) -> int:
        """Add up the main host's memory with `n_local` experts of every layer."""
        return self.fixed_bytes + self.n_layers * n_local * self.expert_bytes


@dataclass(frozen=True)
class Speed:
    """Hold the main host's computing, in milliseconds, nothing missing.

    decode_dense_ms: a token without its expert FFNs. decode_row_ms: one token through one expert.
    prefill_*: a prompt of n tokens takes base + n * dense_each, and a row through an expert row_ms.
    """

    decode_dense_ms: float
    decode_row_ms: float
    prefill_base_ms: float
    prefill_dense_each_ms: float
    prefill_row_ms: float

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Link:
    """Hold the network between the main host and a function."""

    round_trip_ms: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        _check(self, above_zero=("bytes_per_s",))

    def transfer_ms(self, n_bytes: float) -> float:
        """Give the time that bytes take once they flow."""
        return 1000 * n_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Slo:
    """Hold the targets, in milliseconds; None where nothing is asked."""

    tpot_ms: float | None = None
    ttft_ms: float | None = None

    def __post_init__(self) -> None:
        _check(self, above_zero=("tpot_ms", "ttft_ms"))

    def holds(self, tpot_ms: float, ttft_ms: float) -> bool:
        """Say whether both times keep the targets."""
        slack = 1 + 1e-9
        return (self.tpot_ms is None or tpot_ms <= self.tpot_ms * slack) and (
            self.ttft_ms is None or ttft_ms <= self.ttft_ms * slack
        )


@dataclass(frozen=True)
class Workload:
    """Hold the tokens of a prompt, N_in, and of its answer, N_out."""

    n_prompt: int = 128
    n_answer: int = 256

    def __post_init__(self) -> None:
        _check(self, above_zero=("n_prompt", "n_answer"))


@dataclass(frozen=True)
class Request:
    """Join all of it."""

    shape: Shape
    speed: Speed
    link: Link
    slo: Slo
    workload: Workload
