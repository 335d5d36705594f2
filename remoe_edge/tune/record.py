"""What a run leaves behind: tuned routers as safetensors, and a record from which to repeat it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remoe_edge.errors import InputError, ModelError
from remoe_edge.files.atomic import write_bytes
from remoe_edge.tune.architecture import Shape, gguf_router_name, hf_router_name
from remoe_edge.tune.data import Domain
from remoe_edge.tune.decoder import check_router

FORMAT = "remoe-edge-routers"
FORMAT_VERSION = "1"


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("remoe-edge", "torch", "numpy", "gguf", "transformers", "llama-cpp-python"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_data(domains: Sequence[Domain]) -> list[dict[str, Any]]:
    """Return each domain's name, size and hash, for the run record."""
    return [
        {"domain": d.name, "tokens": len(d.tokens), "text_bytes": d.n_bytes, "sha256": d.sha256}
        for d in domains
    ]


def base_fingerprint(model: str | Path) -> str:
    """Return the GGUF's fingerprint, which says what the routers fit.

    "" for a Hugging Face folder, and where the extension is not built.
    """
    if Path(model).is_dir():
        return ""
    try:
        from remoe_edge.files.fingerprint import fingerprint
        from remoe_edge.native import _core
    except ImportError:
        # Tuning needs no extension (a CUDA machine may lack it); `convert` still checks shapes.
        return ""
    return fingerprint(_core.ModelFile.open(model))


def save_routers(
    path: Path, routers: Sequence[Tensor], shape: Shape, fingerprint: str, run: dict[str, Any]
) -> None:
    """Write routers [experts, d] float32 under their Hugging Face names, all or nothing."""
    from safetensors.torch import save

    tensors = {
        hf_router_name(layer): router.detach().to("cpu", torch.float32).contiguous()
        for layer, router in zip(shape.router_layers, routers, strict=True)
    }
    for layer, tensor in zip(shape.router_layers, tensors.values(), strict=True):
        check_router(tensor, shape, layer, str(path))
    metadata = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "architecture": shape.architecture,
        "base_fingerprint": fingerprint,
        "run": json.dumps(run, sort_keys=True),
    }
    write_whole(path, save(tensors, metadata=metadata))


def load_routers(path: str | Path, shape: Shape, fingerprint: str = "") -> list[Tensor]:
    """Read tuned routers for a model of that shape; refuse other names, shapes, bases and
    values."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such routers file")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
    arch = metadata.get("architecture", shape.architecture)
    if arch != shape.architecture:
        raise ModelError(f"{path}: routers of a {arch} model, but the base is {shape.architecture}")
    made_for = metadata.get("base_fingerprint", "")
    if made_for and fingerprint and made_for != fingerprint:
        raise ModelError(
            f"{path}: tuned for another base (fingerprint {made_for[:12]}, not {fingerprint[:12]})"
        )
    names = [hf_router_name(layer) for layer in shape.router_layers]
    missing = [name for name in names if name not in tensors]
    if missing:
        held = next(iter(tensors), "nothing")
        raise ModelError(
            f"{path}: {len(missing)} of {len(names)} routers are missing, first {missing[0]} "
            f"(the file holds {held})"
        )
    extra = sorted(set(tensors) - set(names))
    if extra:
        raise ModelError(f"{path}: {extra[0]} is no router of this model")
    for layer, name in zip(shape.router_layers, names, strict=True):
        check_router(tensors[name], shape, layer, str(path))
    return [tensors[name].float() for name in names]


def load_named_routers(name: str, model: Path, shape: Shape, fingerprint: str = "") -> list[Tensor]:
    """Read the routers that `--routers` names: `default`, an overlay or a safetensors file."""
    from remoe_edge.files.models import shipped_routers

    path = shipped_routers(model) if name in ("default", "on") else Path(name)
    if path.suffix == ".gguf":
        return load_overlay_routers(path, model, shape)
    return load_routers(path, shape, fingerprint)


def load_overlay_routers(path: Path, model: Path, shape: Shape) -> list[Tensor]:
    """Read the routers of an overlay for a GGUF; refuse one of another base, or with biases."""
    from remoe_edge.files.overlay import load_overlay
    from remoe_edge.files.router_tensors import routers_of
    from remoe_edge.files.tensor_values import to_float32
    from remoe_edge.native import _core

    if model.is_dir():
        raise InputError(f"{path}: an overlay belongs to a GGUF, and {model} is a folder")
    base = _core.ModelFile.open(model)
    tensors = routers_of(base)
    routers = {
        name: torch.from_numpy(to_float32(raw, tensors[name]).copy())
        for name, raw in load_overlay(path, base).items()
    }
    names = [gguf_router_name(layer) for layer in shape.router_layers]
    other = sorted(set(routers) - set(names))
    if other:
        raise InputError(f"{path}: {other[0]} is no router that can be evaluated here")
    return [routers[name] for name in names]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either complete or not there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(data, path)
