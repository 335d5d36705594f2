"""A base model with routers tuned for it: what the tests of converting routers begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.convert.names import CheckpointNames
from remoe_edge.convert.routers import convert_routers
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.overlay import load_overlay
from remoe_edge.files.router_tensors import routers_of
from remoe_edge.native import _core
from tiny_moe import make

Arrays = dict[str, npt.NDArray[Any]]
DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int32": "I32", "float64": "F64"}


def write_safetensors(path: Path, tensors: Arrays, metadata: dict[str, str] | None = None) -> Path:
    """Write arrays as safetensors; uint16 arrays are taken as BF16 bits."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata is not None else {}
    data = b""
    for name, values in tensors.items():
        raw = values.tobytes()
        header[name] = {
            "dtype": DTYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def tuned_values(model: _core.ModelFile, seed: int = 1) -> Arrays:
    """Return new random values for every router tensor of a model, by its GGUF name."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(tuple(reversed(tensor.shape)), dtype=np.float32)
        for name, tensor in routers_of(model).items()
    }


def checkpoint_values(model: _core.ModelFile, values: Arrays) -> Arrays:
    """Return the same values under the first Hugging Face name of each."""
    names = CheckpointNames.covering(model.architecture, values)
    return {names.from_gguf(name)[0]: array for name, array in values.items()}


def metadata_of(model: _core.ModelFile) -> dict[str, str]:
    return {
        "format": "remoe-edge-routers",
        "version": "1",
        "architecture": model.architecture,
        "base_fingerprint": fingerprint(model),
        "run": json.dumps({"steps": 3}),
    }


class Case:
    """A base model, routers tuned for it, and where to put results."""

    def __init__(self, folder: Path, arch: str = "qwen3moe", **options: Any) -> None:
        self.folder = folder
        self.base_path = make(folder / "base.gguf", arch, "Q4_0", **options)
        self.base = _core.ModelFile.open(self.base_path)
        self.values = tuned_values(self.base)
        self.tuned = write_safetensors(
            folder / "tuned.safetensors", self.values, metadata_of(self.base)
        )
        self.overlay = folder / "routers.gguf"

    def retune(self, values: Arrays, **metadata: str) -> Path:
        return write_safetensors(self.tuned, values, {**metadata_of(self.base), **metadata})

    def convert(self) -> dict[str, bytes]:
        convert_routers(self.tuned, self.base_path, self.overlay)
        return load_overlay(self.overlay, self.base)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "partial" in path.name]
