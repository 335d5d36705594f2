"""Whether this is one of NVIDIA's boards, as its system or its device tree says."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.cgroups import ROOT


def is_jetson(root: Path = ROOT) -> bool:
    """Look for L4T's release file, then for a Tegra chip: a container has only the kernel's word."""
    if (root / "etc/nv_tegra_release").exists():
        return True
    chips = kernel_files.text(root / "proc/device-tree/compatible").split("\0")
    return any(chip.startswith("nvidia,tegra") for chip in chips)
