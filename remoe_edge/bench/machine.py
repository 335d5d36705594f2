"""What a bench ran on, in plain values: nothing that names a person, a host or a folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from remoe_edge.bench.disk import Disk
from remoe_edge.machine import kernel_files, memory


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Describe processor, memory and kernel."""
    info = kernel_files.text(root / "proc/cpuinfo")
    governor = kernel_files.word(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "board": kernel_files.word(root / "proc/device-tree/model") or None,
        "cpu": _field(info, "model name") or platform.machine(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in _field(info, "flags").split(),
        "governor": governor or None,
        "memory_bytes": psutil.virtual_memory().total,
        "swap_bytes": psutil.swap_memory().total,
        "cgroup_limit_bytes": memory.cgroup_limit_bytes(),
        "kernel": platform.release(),
        "system": _system(root),
    }


def software() -> dict[str, Any]:
    """Name the versions of what ran, and how OpenMP's threads wait in every arm."""
    import remoe_edge
    from remoe_edge.inspect.doctor import ggml_build
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


def _system(root: Path) -> str | None:
    for line in kernel_files.text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return None


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
