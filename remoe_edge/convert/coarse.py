"""A model's experts once more, in a type that takes fewer bytes: read where a little quality may be lost.

Weights go through ggml's own converters, each matrix by itself. Where rows are no multiple of a type's
block, the type is the one that llama.cpp's quantiser takes then; where that takes no fewer bytes than
the model's own, the model's own weights are kept.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import Progress, check_output, check_space, replacing
from remoe_edge.files.coarse import FORMAT_VERSION, PREFIX
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.overlay import name_of
from remoe_edge.files.own_gguf import open_model
from remoe_edge.files.tensor_values import read_range
from remoe_edge.machine.processors import default_threads
from remoe_edge.native import _core

_UNKNOWN = "0" * 64  # in the place of a fingerprint that is known once the tensors are there


@dataclass(frozen=True)
class _Plan:
    """Hold what becomes of one tensor: its new type, and bytes of a row now and then."""

    tensor: _core.Tensor
    type: int
    row_bytes: int
    new_row_bytes: int

    @property
    def keeps(self) -> bool:
        """Say whether the tensor's own weights are kept."""
        return self.type == self.tensor.type

    @property
    def shape(self) -> tuple[int, int, int]:
        """Give experts, rows of each, and weights of a row."""
        n_per_row, n_rows, n_experts = self.tensor.shape
        return n_experts, n_rows, n_per_row

    @property
    def n_bytes(self) -> int:
        """Give the bytes that it will take."""
        return self.shape[0] * self.shape[1] * self.new_row_bytes


def write_coarse(
    path: Path, type_name: str, output: Path, progress: Progress | None = None
) -> None:
    """Write the experts of a model in a coarser type. Reads the experts once.

    Raises InputError for a dense model, one without experts, and a type that is unknown or takes no
    fewer bytes than the model's own; UnsupportedError where ggml cannot decode the model's types.
    """
    model = open_model(path)
    if not model.expert_layers:
        raise InputError(f"{path} is a dense model: it has no experts")
    if not model.has_experts:
        raise InputError(f"{path} holds no experts: name the model that it was made from")
    check_output(output, model.paths)
    plans = [
        _planned(model.tensors[matrix.tensor], type_name)
        for layer in model.expert_layers
        for matrix in layer.matrices
    ]
    if all(plan.keeps for plan in plans):
        own = plans[0].tensor.type_name
        raise InputError(
            f"{type_name} takes no fewer bytes than {own}, the type of {path}'s experts: name a "
            "coarser --type"
        )
    check_space(output.absolute().parent, sum(plan.n_bytes for plan in plans))
    with replacing([output]) as (partial,):
        _write(partial, model, type_name, plans, progress)


def _planned(tensor: _core.Tensor, type_name: str) -> _Plan:
    n_per_row = tensor.shape[0]
    # No type has another letter, and C++ takes no half of a character.
    new_type = _core.coarse_type_for(type_name.encode("ascii", "replace").decode(), n_per_row)
    own_bytes, new_bytes = _row_bytes(tensor.type, n_per_row), _row_bytes(new_type, n_per_row)
    if new_bytes >= own_bytes:
        new_type, new_bytes = tensor.type, own_bytes
    return _Plan(tensor, new_type, own_bytes, new_bytes)


def _row_bytes(type_number: int, n_per_row: int) -> int:
    traits = _core.type_traits(type_number)
    assert traits is not None
    _, block_weights, block_bytes = traits
    return n_per_row // block_weights * block_bytes


def _write(
    path: Path,
    model: _core.ModelFile,
    type_name: str,
    plans: list[_Plan],
    progress: Progress | None,
) -> None:
    writer = GGUFWriter(path, model.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "coarse_experts")
    writer.add_string(f"{PREFIX}.fingerprint", _UNKNOWN)  # before anything that could hold the same
    writer.add_uint32(f"{PREFIX}.version", FORMAT_VERSION)
    writer.add_string(f"{PREFIX}.type", type_name.upper())
    writer.add_string(f"{PREFIX}.base_fingerprint", fingerprint(model))
    writer.add_string(f"{PREFIX}.base_name", name_of(model))
    for plan in plans:
        n_experts, n_rows, _ = plan.shape
        writer.add_tensor_info(
            plan.tensor.name,
            (n_experts, n_rows, plan.new_row_bytes),
            np.dtype(np.uint8),
            plan.n_bytes,
            raw_dtype=GGMLQuantizationType(plan.type),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(plan.tensor.n_bytes for plan in plans)
    with ThreadPoolExecutor(default_threads()) as pool:
        for plan in plans:
            experts = list(pool.map(partial(_requantised, model, plan), range(plan.shape[0])))
            writer.write_tensor_data(np.concatenate(experts))
            done += plan.tensor.n_bytes
            if progress is not None:
                progress(done, total)
    writer.close()
    _sign(path)


def _requantised(model: _core.ModelFile, plan: _Plan, expert: int) -> npt.NDArray[np.uint8]:
    """Read one expert's matrix and give it in the new type."""
    _, n_rows, n_per_row = plan.shape
    n_bytes = n_rows * plan.row_bytes
    where = model.paths[plan.tensor.shard]
    raw = np.frombuffer(read_range(where, plan.tensor.offset + expert * n_bytes, n_bytes), np.uint8)
    if plan.keeps:
        return raw
    return _core.requantise(plan.tensor.type, raw, plan.type, n_rows, n_per_row)


def _sign(path: Path) -> None:
    """Write the fingerprint of the file's tensors into its key."""
    own = fingerprint(_core.ModelFile.open(str(path)))
    with path.open("r+b") as file:
        head = file.read(1 << 20)
        file.seek(head.index(_UNKNOWN.encode()))
        file.write(own.encode())
