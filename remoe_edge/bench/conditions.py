"""With what a bench ran, in plain values: software, model, storage; nothing that names a folder."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from remoe_edge.machine.disk import Disk


def software() -> dict[str, Any]:
    """Name the versions of what ran, and how OpenMP's threads wait in every arm."""
    import remoe_edge
    from remoe_edge.inspect.doctor.installation import ggml_build
    from remoe_edge.native import LLAMA_CPP_PYTHON, WAIT_POLICY, llama_cpp

    ggml, commit = ggml_build(llama_cpp)
    return {
        "remoe_edge": remoe_edge.__version__,
        "python": platform.python_version(),
        "llama_cpp_python": LLAMA_CPP_PYTHON,
        "ggml": ggml,
        "ggml_commit": commit,
        "wait_policy": WAIT_POLICY,
    }


def model(path: Path) -> dict[str, Any]:
    """Describe a model by what `remoe-edge info` says of it, without folders."""
    from remoe_edge.inspect.info import describe

    about = describe(path)
    experts = about.get("experts") or {}
    return {
        "file": path.name,
        "name": about["name"],
        "architecture": about["architecture"],
        "fingerprint": about.get("fingerprint"),
        "file_bytes": about["file_bytes"],
        "dense_bytes": about["dense_bytes"],
        "layers": about["layers"],
        "expert_layers": experts.get("layers", 0),
        "experts_per_layer": experts.get("per_layer"),
        "experts_used": experts.get("used_per_token"),
        "expert_bytes": experts.get("bytes"),
        "bytes_per_token": experts.get("bytes_per_token"),
        "types": experts.get("types", about["dense_types"]),
    }


def storage(path: Path, disk: Disk | None, seconds: float) -> dict[str, Any]:
    """Probe random reads of the model file for about `seconds`; 0 leaves it out."""
    about: dict[str, Any] = {"disk": None if disk is None else disk.name, "probe": None}
    if seconds > 0:
        from remoe_edge.machine.storage import probe

        measured = probe(path, seconds).as_json()
        about["probe"] = {name: measured[name] for name in ("backend", "direct", "notes", "pick")}
        about["probe"]["points"] = [
            {
                "block_bytes": point["block_bytes"],
                "depth": point["depth"],
                "mib_per_s": round(point["mib_per_s"], 1),
            }
            for point in measured["points"]
        ]
    return about
