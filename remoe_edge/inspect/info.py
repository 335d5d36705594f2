"""What a model file says of itself, and how much of it this machine can keep resident."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoe_edge.engine.budget import floor_bytes
from remoe_edge.engine.kv_cache import kv_bytes
from remoe_edge.errors import InputError
from remoe_edge.files.atomic import cut_short
from remoe_edge.machine import memory
from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile

_CONTEXT = 4096
_MARKS = "remoe_edge."


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a model's shape, sizes and what fits here, or what an overlay is for. Sizes in bytes.

    Reads headers, and a few KiB a tensor for the fingerprint. Raises RemoeError for no model.
    """
    if not Path(path).is_file():
        raise InputError(f"no model at {os.fspath(path)}{cut_short(Path(path))}")
    file = _core.ModelFile.open(os.fspath(path))
    if file.unsigned("remoe_edge.overlay.version") is not None:
        return _describe_overlay(path)
    file.check()
    layers = file.expert_layers
    about: dict[str, Any] = {
        "kind": "experts" if layers else "dense",
        "path": os.fspath(path),
        "name": file.string("general.name"),
        "architecture": file.architecture,
        "layers": file.unsigned(f"{file.architecture}.block_count"),
        "context_length": file.unsigned(f"{file.architecture}.context_length"),
        "shards": [
            {"path": shard, "bytes": n_bytes}
            for shard, n_bytes in zip(file.paths, file.file_bytes, strict=True)
        ],
        "file_bytes": sum(file.file_bytes),
        "dense_bytes": file.dense_bytes,
        "dense_types": _types(file, expert=False),
        "kv_bytes_per_1k_tokens": kv_bytes(file, 1000),
        "marks": _marks(file),
    }
    if layers:
        about["experts"] = _describe_experts(file)
        about["fingerprint"] = _fingerprint(file)
    about["here"] = _fit(file, about)
    return about


def _describe_experts(file: ModelFile) -> dict[str, Any]:
    layers = file.expert_layers
    # A fixed depth: nothing is read, so nothing needs measuring.
    model = _core.StreamedModel.open(file.paths[0], depth=1, repack=False)
    sizes = [layer.expert_bytes for layer in layers]
    floor = floor_bytes(model)
    return {
        "layers": len(layers),
        "per_layer": max(layer.n_experts for layer in layers),
        "used_per_token": file.n_experts_used,
        "total": model.total_experts,
        "types": _types(file, expert=True),
        "bytes": file.expert_bytes,
        "bytes_each_min": min(sizes),
        "bytes_each_max": max(sizes),
        "bytes_per_token": sum(size * file.n_experts_used for size in sizes),
        "slot_bytes": model.slot_bytes,
        "floor_slots": max(1, file.n_experts_used),
        "floor_bytes": floor,
        "floor_cache": f"{-(-floor // 1024)}KiB",
    }


def _describe_overlay(path: str | os.PathLike[str]) -> dict[str, Any]:
    from remoe_edge.files.overlay import read_record

    record, file = read_record(path)
    return {
        "kind": "routers",
        "path": os.fspath(path),
        "architecture": record.architecture,
        "base_name": record.base_name,
        "base_fingerprint": record.base_fingerprint,
        "routers": len(file.tensors),
        "file_bytes": sum(file.file_bytes),
    }


def _types(file: ModelFile, *, expert: bool) -> dict[str, int]:
    """Return bytes by quantisation, the largest first."""
    indices = {matrix.tensor for layer in file.expert_layers for matrix in layer.matrices}
    n_bytes: Counter[str] = Counter()
    for index, tensor in enumerate(file.tensors):
        if (index in indices) == expert:
            n_bytes[tensor.type_name] += tensor.n_bytes
    return dict(n_bytes.most_common())


def _marks(file: ModelFile) -> dict[str, str | int]:
    """Return what our own tools wrote into a file about how it was made."""
    marks: dict[str, str | int] = {}
    for name in file.key_names:
        if not name.startswith(_MARKS):
            continue
        value = file.string(name)
        number = file.unsigned(name) if value is None else value
        if number is not None:
            marks[name.removeprefix(_MARKS)] = number
    return marks


def _fingerprint(file: ModelFile) -> str:
    from remoe_edge.files.fingerprint import fingerprint

    return fingerprint(file)


def _fit(file: ModelFile, about: dict[str, Any]) -> dict[str, Any]:
    """Estimate what `--cache auto` would find: compute buffers are known only once it is loaded."""
    room = memory.available()
    kv = kv_bytes(file, min(about["context_length"] or _CONTEXT, _CONTEXT))
    left = room.available_bytes - file.dense_bytes - (kv or 0) - room.reserve_bytes
    fit: dict[str, Any] = {
        "available_bytes": room.available_bytes,
        "limited_by": room.limited_by,
        "cgroup_limit_bytes": memory.cgroup_limit_bytes(),
        "kv_bytes": kv,
        "reserve_bytes": room.reserve_bytes,
    }
    experts = about.get("experts")
    if experts is None:
        fit["fits_whole"] = left >= 0
        return fit
    slots = max(0, min(experts["total"], left // experts["slot_bytes"]))
    fit["auto_slots"] = slots
    fit["auto_bytes"] = slots * experts["slot_bytes"]
    fit["share_of_experts"] = slots / experts["total"]
    fit["fits_whole"] = slots == experts["total"]
    fit["runs"] = left >= experts["floor_bytes"]
    return fit
