"""Tuned routers as safetensors, read and fitted to a base model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from remoe_edge.convert.names import CheckpointNames, is_untrained_copy
from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.files.atomic import check_output
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.overlay import require_all, require_finite, run_record, write_overlay
from remoe_edge.files.own_gguf import open_model
from remoe_edge.files.router_tensors import canonical, is_router, must_be_tuned, routers_of
from remoe_edge.files.safetensors_file import SafetensorsFile
from remoe_edge.files.tensor_values import from_float32, read_tensor, to_float32
from remoe_edge.native import _core

FORMAT = "remoe-edge-routers"
FORMAT_VERSION = "1"
MOST_STRENGTH = 2.0
# What the libraries that save tensors call themselves.
_LIBRARIES = ("pt", "tf", "flax", "np", "mlx")


def convert_routers(tuned: Path, base_path: Path, output: Path, strength: float = 1.0) -> None:
    """Write the overlay of a base GGUF and the routers tuned for it.

    `tuned` is a safetensors file with float tensors under Hugging Face or GGUF names, [experts,
    width] for matrices. Biases that it lacks are the base's own. `strength` is how far the overlay
    goes from the base's routers to the tuned ones: 1 all the way, less for less reuse at less cost.
    Raises InputError naming what does not fit.
    """
    if not 0 < strength <= MOST_STRENGTH:
        raise InputError(f"the strength must be above 0 and at most {MOST_STRENGTH:g}: {strength}")
    base = open_model(base_path)
    check_output(output, [tuned, *base.paths])
    file = SafetensorsFile.open(tuned)
    check_metadata(file, base.architecture)
    base_fingerprint = fingerprint(base)
    told = file.metadata.get("base_fingerprint", "")
    if told and told != base_fingerprint:
        raise InputError(f"{tuned} was tuned for another base model than {base.paths[0]}")
    run = run_record(file.metadata.get("run", ""), f"{tuned}")
    if strength != 1:
        run = json.dumps({**json.loads(run), "strength": strength})
    write_overlay(output, base, fit(file, base, strength), base_fingerprint, run)


def fit(file: SafetensorsFile, base: _core.ModelFile, strength: float = 1.0) -> dict[str, bytes]:
    """Return all of the base's routers, tuned where the file has them, in the base's types."""
    routers = {canonical(name): tensor for name, tensor in routers_of(base).items()}
    keys = keys_by_router(file, base.architecture)
    optional = {name for name in routers if not must_be_tuned(base, name)}
    require_all(f"{file.path}", set(routers), set(keys) | optional)
    tensors: dict[str, bytes] = {}
    for name, router in routers.items():
        if name in keys:
            values = checked_values(file, keys[name], tuple(reversed(router.shape)))
            if strength != 1:
                own = to_float32(read_tensor(base, router), router)
                values = own + np.float32(strength) * (values - own)
                require_finite(f"{file.path}: {keys[name]!r} at strength {strength}", values)
            raw = from_float32(values, router)
            require_finite(
                f"{file.path}: {keys[name]!r} as {router.type_name}", to_float32(raw, router)
            )
            tensors[router.name] = raw
        else:
            tensors[router.name] = read_tensor(base, router)
    return tensors


def check_metadata(file: SafetensorsFile, architecture: str) -> None:
    """Refuse routers of another format, version or architecture, where the file says so."""
    kind = file.metadata.get("format", "")
    if kind not in (FORMAT, "", *_LIBRARIES):
        raise InputError(f"{file.path}: its format is '{kind}', not '{FORMAT}'")
    version = file.metadata.get("version", FORMAT_VERSION)
    if kind == FORMAT and version != FORMAT_VERSION:  # of others it is a version of something else
        raise UnsupportedError(f"{file.path}: format version {version}, not {FORMAT_VERSION}")
    told = file.metadata.get("architecture", "")
    if told and told != architecture:
        raise InputError(f"{file.path} is for architecture '{told}', the base is '{architecture}'")


def keys_by_router(file: SafetensorsFile, architecture: str) -> dict[str, str]:
    """Return the file's key for each router, by canonical GGUF name.

    Raises InputError for keys that are no routers, or that mean the same router twice.
    """
    found: dict[str, str] = {}
    checkpoint: CheckpointNames | None = None
    for key in file.entries:
        if is_untrained_copy(key):
            continue
        if is_router(key):
            name: str | None = canonical(key)
        else:
            checkpoint = checkpoint or CheckpointNames.covering(architecture, file.entries)
            name = checkpoint.to_gguf(key)
        if name is None:
            raise InputError(f"{file.path}: {key!r} is not the name of a router")
        if name in found:
            raise InputError(f"{file.path}: {key!r} and {found[name]!r} are the same router")
        found[name] = key
    if not found:
        raise InputError(f"{file.path} holds no tensors")
    return found


def checked_values(
    file: SafetensorsFile, key: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Return a router's values; raise InputError for another shape, NaN or infinity."""
    entry = file.entries[key]
    if entry.shape != shape:
        hint = "; it is transposed" if entry.shape == shape[::-1] else ""
        raise InputError(
            f"{file.path}: {key!r} is {list(entry.shape)}, the base model's is {list(shape)}{hint}"
        )
    values = file.float32(key)
    require_finite(f"{file.path}: {key!r}", values)
    return values
