"""Overlays: small GGUF files with a model's tuned routers, for one base model.

An overlay holds every router tensor of its base, in the base's own types and shapes, and says in
its keys which base that is and how the routers came about.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import replacing
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.own_gguf import open_own
from remoe_edge.files.router_tensors import block_of, routers_of
from remoe_edge.files.tensor_values import read_tensor, to_float32
from remoe_edge.native import _core

FORMAT_VERSION = 1
_PREFIX = "remoe_edge.overlay"


@dataclass(frozen=True)
class OverlayRecord:
    """What an overlay says of itself; `run` is JSON, "{}" when nothing is known."""

    architecture: str
    base_fingerprint: str
    base_name: str
    run: str


def read_record(path: str | os.PathLike[str]) -> tuple[OverlayRecord, _core.ModelFile]:
    """Return an overlay's record and its parsed file; raise InputError for any other GGUF."""
    overlay = open_own(
        path, _PREFIX, FORMAT_VERSION, what="an overlay",
        otherwise="not a router overlay; `remoe-edge convert routers` or `extract` makes one",
    )  # fmt: skip
    record = OverlayRecord(
        architecture=overlay.architecture,
        base_fingerprint=overlay.string(f"{_PREFIX}.base_fingerprint") or "",
        base_name=overlay.string(f"{_PREFIX}.base_name") or "",
        run=overlay.string(f"{_PREFIX}.run") or "{}",
    )
    return record, overlay


def load_overlay(path: str | os.PathLike[str], model: _core.ModelFile) -> dict[str, bytes]:
    """Return the tuned routers of an overlay, as bytes that stand in for the model's own.

    Raises InputError naming what does not fit: another architecture or base, a tensor missing,
    unknown or of another shape or type, a value that is not finite.
    """
    record, overlay = read_record(path)
    if record.architecture != model.architecture:
        raise InputError(
            f"{path} is for architecture '{record.architecture}', "
            f"{model.paths[0]} is '{model.architecture}'"
        )
    if record.base_fingerprint != fingerprint(model):
        raise InputError(
            f"{path} was made for another base model ('{record.base_name}', fingerprint "
            f"{record.base_fingerprint[:12] or 'missing'}) than {model.paths[0]}"
        )
    routers = routers_of(model)
    found = {tensor.name: tensor for tensor in overlay.tensors}
    require_all(f"{path}", set(routers), set(found))
    tensors: dict[str, bytes] = {}
    for name, router in routers.items():
        tensor = found[name]
        if tensor.shape != router.shape or tensor.type != router.type:
            raise InputError(
                f"{path}: '{name}' is {tensor.type_name} {tensor.shape}, "
                f"the base model's is {router.type_name} {router.shape}"
            )
        raw = read_tensor(overlay, tensor)
        require_finite(f"{path}: '{name}'", to_float32(raw, router))
        tensors[name] = raw
    return tensors


def write_overlay(
    output: Path,
    base: _core.ModelFile,
    tensors: dict[str, bytes],
    base_fingerprint: str,
    run: str = "{}",
) -> None:
    """Write an overlay whole or not at all.

    `tensors` holds all of the base's routers in its types and shapes; `run` is a JSON object.
    """
    routers = routers_of(base)
    require_all("the overlay", set(routers), set(tensors))
    with replacing([output]) as [partial]:
        writer = GGUFWriter(partial, base.architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "router_overlay")
        writer.add_uint32(f"{_PREFIX}.version", FORMAT_VERSION)
        writer.add_string(f"{_PREFIX}.base_fingerprint", base_fingerprint)
        writer.add_string(f"{_PREFIX}.base_name", name_of(base))
        writer.add_string(f"{_PREFIX}.run", run)
        for name, router in routers.items():
            writer.add_tensor(
                name,
                np.frombuffer(tensors[name], dtype=np.uint8),
                raw_shape=_byte_shape(router),
                raw_dtype=GGMLQuantizationType(router.type),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def name_of(model: _core.ModelFile) -> str:
    """Return a model's own name, or its file's, as UTF-8 can hold it."""
    name = model.string("general.name") or Path(model.paths[0]).stem
    return name.encode("utf-8", "replace").decode()


def run_record(text: str, source: str) -> str:
    """Return a run record's JSON, checked; `source` names the file it comes from."""
    try:
        record = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: its run record is not JSON") from error
    if not isinstance(record, dict):
        raise InputError(f"{source}: its run record is not a JSON object")
    return text or "{}"


def require_all(source: str, wanted: set[str], given: set[str]) -> None:
    """Raise InputError naming the layers that are missing, or the tensors that are too many."""
    if not wanted:
        raise InputError("the base model has no routers: it is not a mixture of experts")
    missing, unknown = wanted - given, given - wanted
    if missing:
        layers = ", ".join(str(block) for block in sorted({block_of(name) for name in missing}))
        raise InputError(f"{source} lacks the routers of layers {layers} ('{min(missing)}')")
    if unknown:
        raise InputError(f"{source} holds '{min(unknown)}', which the base model lacks")


def require_finite(source: str, values: npt.NDArray[np.float32]) -> None:
    """Raise InputError when a tensor holds NaN or infinity."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"{source} has {bad} values that are NaN or infinite")


def _byte_shape(tensor: _core.Tensor) -> list[int]:
    """Return the shape in bytes that GGUFWriter wants for raw data, rows last."""
    rows = tensor.n_bytes // int(np.prod(tensor.shape[1:], dtype=np.int64))
    return [*reversed(tensor.shape[1:]), rows]
