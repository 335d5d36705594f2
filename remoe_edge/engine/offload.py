"""From what a user asks for (`--gpu-layers`) to layers whose dense weights and KV cache a GPU has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remoe_edge.engine.kv_cache import kv_bytes
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.machine.gpu import Gpu, gpus
from remoe_edge.units import MIB, mib

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile

# llama.cpp's compute buffers and the driver's own, left free by `auto`.
_WORKING_BYTES = 512 * MIB


@dataclass(frozen=True)
class Offload:
    """Hold the outcome. n_layers: llama.cpp's count, from the last one, the output being one more."""

    n_layers: int = 0
    n_in_all: int = 1
    gpus: tuple[Gpu, ...] = ()
    experts_on: Gpu | None = None

    @property
    def share(self) -> float:
        """Say how much of the layers lies on the GPU, from 0 to 1."""
        return self.n_layers / self.n_in_all

    @property
    def share_elsewhere(self) -> float:
        """Say how much of the layers takes none of the machine's own memory, from 0 to 1."""
        unified = any(each.unified for each in self.gpus)
        return 0.0 if unified else self.share

    @property
    def names_elsewhere(self) -> frozenset[str]:
        """Name the GPUs in use whose memory is not the machine's own."""
        return frozenset(each.name for each in self.gpus if self.n_layers and not each.unified)

    def said(self) -> str:
        """Say it in a line; empty where nothing is on a GPU."""
        if not self.n_layers:
            return ""
        which = "all" if self.n_layers == self.n_in_all else f"{self.n_layers} of {self.n_in_all}"
        names = ", ".join(f"{each.name} ({each.description})" for each in self.gpus)
        experts = "the processor" if self.experts_on is None else self.experts_on.name
        return f"{which} layers' dense weights and KV cache on {names}; experts on {experts}"


def check(value: object) -> int | str:
    """Return a `gpu_layers` setting in one spelling. Raises InputError for what makes no sense."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, str) and value in ("auto", "all", "off"):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
        return value or "off"
    raise InputError(f"gpu_layers is auto, all, off or a number of layers, not {value!r}")


def resolve(
    asked: int | str, file: ModelFile, weight_bytes: int, n_ctx: int, *, found: list[Gpu] | None = None,
    experts_on: str = "",
) -> Offload:  # fmt: skip
    """Decide how many layers go to the GPUs that are there.

    weight_bytes: of the weights that would go. found: the GPUs, None to ask llama.cpp. experts_on: the
    GPU that has the experts, which takes all layers alone. Raises InputError where layers are asked for
    and no GPU is there, BudgetError where they do not fit.
    """
    if asked == "off":
        return Offload()
    there = gpus() if found is None else found
    with_experts = next((each for each in there if each.name == experts_on), None)
    if with_experts is not None:
        asked, there = "all", [with_experts]
    n_in_all = (file.unsigned(f"{file.architecture}.block_count") or 0) + 1
    if not there:
        if asked == "auto":
            return Offload()
        raise InputError(
            f"gpu_layers {asked} asked for, and llama.cpp has no GPU here (`remoe-edge doctor` says "
            "why): leave it at auto or off"
        )
    need = weight_bytes + (kv_bytes(file, n_ctx) or 0)
    room = sum(each.free_bytes for each in there)
    if asked == "auto":
        fit = max(0, room - _WORKING_BYTES)
        n_layers = n_in_all if need <= fit else n_in_all * fit // max(1, need)
    else:
        n_layers = n_in_all if asked == "all" else min(int(asked), n_in_all)
        if need * n_layers // n_in_all > room:
            raise BudgetError(
                f"{n_layers} of {n_in_all} layers take {mib(need * n_layers // n_in_all)} of GPU "
                f"memory, and {mib(room)} are free on {', '.join(each.name for each in there)}: lower "
                "--gpu-layers or --ctx"
            )
    return Offload(int(n_layers), n_in_all, tuple(there), with_experts)


def gpu_for_experts(asked: str) -> str:
    """Name the GPU that is to have the experts; empty for none. Raises InputError where none is there."""
    if asked != "gpu":
        return ""
    there = gpus()
    if not there:
        raise InputError(
            "experts_on gpu asked for, and llama.cpp has no GPU here (`remoe-edge doctor` says why): "
            "leave it at auto or cpu"
        )
    return there[0].name
