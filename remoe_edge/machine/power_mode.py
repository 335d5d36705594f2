"""A board's power mode and clocks: without them beside it, a measurement cannot be repeated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.cgroups import ROOT


@dataclass(frozen=True)
class PowerMode:
    """Hold a Jetson's power mode (None elsewhere), all that there are, and how the clocks are set.

    modes: number -> name. held: every processor's clock is held at the highest that the mode allows
    (`jetson_clocks`); None where clocks are not told. governor: who sets them otherwise.
    """

    number: str | None
    name: str | None
    modes: dict[str, str]
    held: bool | None
    governor: str | None

    @property
    def full(self) -> bool:
        """Say whether it is the mode without a limit; True where there are no modes."""
        return self.name is None or self.name.upper().startswith("MAXN")

    def line(self) -> str:
        """Write both in a few words, as they stand beside a measurement; "" where neither is known."""
        parts = [] if self.name is None else [f"power mode {self.name}"]
        if self.held is not None:
            parts.append(
                "clocks held at their highest"
                if self.held
                else f"clocks change ({self.governor or 'unknown governor'})"
            )
        return ", ".join(parts)


def power_mode(root: Path = ROOT) -> PowerMode:
    """Look at the power mode and the clocks."""
    modes = mode_names(root)
    number = _number(root)
    governor = kernel_files.word(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return PowerMode(
        number,
        None if number is None else modes.get(number, number),
        modes,
        _held(root),
        governor or None,
    )


def _number(root: Path) -> str | None:
    """Read the mode that was set, or the one that a board starts in until somebody sets another."""
    status = kernel_files.word(root / "var/lib/nvpmodel/status")
    conf = kernel_files.word(root / "etc/nvpmodel.conf")
    found = re.match(r"pmode:0*(\d+)", status) or re.search(
        r"<\s*PM_CONFIG\s+DEFAULT=0*(\d+)\s*>", conf
    )
    return found[1] if found else None


def mode_names(root: Path = ROOT) -> dict[str, str]:
    """Read which power modes the board has, number -> name."""
    text = kernel_files.word(root / "etc/nvpmodel.conf")
    return dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text))


def _held(root: Path) -> bool | None:
    found = []
    for folder in sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*")):
        least = kernel_files.number(folder / "scaling_min_freq")
        # A mode with a limit has a lower highest than the processor.
        most = kernel_files.number(folder / "scaling_max_freq")
        if most is None:
            most = kernel_files.number(folder / "cpuinfo_max_freq")
        if least is not None and most is not None:
            governor = kernel_files.word(folder / "scaling_governor")
            found.append(least >= most or governor == "performance")
    return all(found) if found else None
