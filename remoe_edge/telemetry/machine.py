"""Which machine it was: what a record must say so that two can be compared."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from remoe_edge.machine import kernel_files


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """Name board, processor, cores, memory, kernel and fastest clocks; None where not told."""
    cpuinfo = kernel_files.text(root / "proc/cpuinfo")
    meminfo = kernel_files.text(root / "proc/meminfo")
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", meminfo, re.MULTILINE)
    board = kernel_files.word(root / "proc/device-tree/model") or kernel_files.word(
        root / "sys/class/dmi/id/product_name"
    )
    return {
        "board": board or None,
        "processor": model[1].strip() if model else None,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "max_clock_mhz": _fastest(root),
        "kernel": platform.release(),
        "l4t": _l4t(root),
    }


def _fastest(root: Path) -> float | None:
    found = [
        float(text) / 1000
        for path in root.glob("sys/devices/system/cpu/cpufreq/policy*/cpuinfo_max_freq")
        if (text := kernel_files.word(path)) and text.isdigit()
    ]
    return max(found, default=None)


def _l4t(root: Path) -> str | None:
    text = kernel_files.word(root / "etc/nv_tegra_release")
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None
