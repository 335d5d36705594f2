"""Which machine it is: what a record must say so that two can be compared.

Nothing of it names a person, a host or a folder.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

from remoe_edge.machine import kernel_files, memory
from remoe_edge.machine.power_mode import power_mode


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """Name board, processor, memory, kernel and clocks in plain values; None where they are not told."""
    cpuinfo = kernel_files.text(root / "proc/cpuinfo")
    mode = power_mode(root)
    flags = _field(cpuinfo, "flags") or ""
    return {
        "board": _board(root),
        "cpu": _field(cpuinfo, "model name|Model|Hardware") or platform.machine(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "max_clock_mhz": _fastest(root),
        "virtual": "hypervisor" in flags.split(),
        "governor": mode.governor,
        "power_mode": mode.name,
        "clocks_held": mode.held,
        "memory_bytes": _memory_bytes(root),
        "swap_bytes": psutil.swap_memory().total,
        "cgroup_limit_bytes": memory.cgroup_limit_bytes(),
        "kernel": platform.release(),
        "system": _system(root),
        "l4t": _l4t(root),
    }


def _field(text: str, names: str) -> str | None:
    match = re.search(rf"^(?:{names})[ \t]*:[ \t]*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _board(root: Path) -> str | None:
    for place in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if name := kernel_files.word(root / place):
            return name
    return None


def _memory_bytes(root: Path) -> int | None:
    return memory.field_bytes(kernel_files.text(root / "proc/meminfo"), "MemTotal")


def _fastest(root: Path) -> float | None:
    found = [
        kilohertz / 1000
        for path in root.glob("sys/devices/system/cpu/cpufreq/policy*/cpuinfo_max_freq")
        if (kilohertz := kernel_files.number(path)) is not None
    ]
    return max(found, default=None)


def _system(root: Path) -> str | None:
    for line in kernel_files.text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return None


def _l4t(root: Path) -> str | None:
    text = kernel_files.word(root / "etc/nv_tegra_release")
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None
