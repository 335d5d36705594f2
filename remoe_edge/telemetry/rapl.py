"""Energy counters of x86 processors (RAPL), where this user may read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.telemetry.attribute import Attribute, opened, value
from remoe_edge.telemetry.sample import Missing, Sample


@dataclass
class Domain:
    """Count one domain's joules from its start on; the kernel's counter wraps at `range_uj`."""

    name: str
    file: Attribute
    range_uj: float
    last_uj: float
    joules: float = 0.0

    def advance(self) -> None:
        """Add what was used since the last time, over one wrap at most."""
        now = value(self.file)
        if now is None:
            return
        used = now - self.last_uj
        if used < 0:
            used += self.range_uj
        self.joules += max(0.0, used) / 1e6
        self.last_uj = now


class Rapl:
    """Read packages, their parts and DRAM; the total is packages + DRAM, not the wall's."""

    name = "rapl"

    def __init__(self, root: Path) -> None:
        self._domains: list[Domain] = []
        refused: Path | None = None
        folders = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
        for folder in folders:
            file = opened(folder / "energy_uj")
            if file is None:
                refused = refused or folder / "energy_uj"
                continue
            reading = value(file) or 0.0
            span = float(kernel_files.word(folder / "max_energy_range_uj") or 0)
            self._domains.append(Domain(_name(folder, root), file, span, reading))
        if not self._domains:
            if refused is None:
                raise Missing("no RAPL energy counter")
            raise Missing(
                f"RAPL may not be read: as root, chmod a+r {refused.parent.parent}/*/energy_uj"
            )
        counted = [each for each in self._domains if each.name.startswith("package")]
        self._total = [
            each for each in counted if "/" not in each.name or each.name.endswith("/dram")
        ]
        self.total = " + ".join(each.name for each in self._total) or None
        self._before: tuple[float, float] | None = None

    def read(self, sample: Sample) -> None:
        """Fill in joules since the start, and the mean power since the sample before."""
        for domain in self._domains:
            domain.advance()
            sample.rail_energy_j[domain.name] = domain.joules
        if not self._total:
            return
        joules = sample.energy_j = sum(domain.joules for domain in self._total)
        if self._before is not None and sample.t_s > self._before[0]:
            sample.power_w = (joules - self._before[1]) / (sample.t_s - self._before[0])
        self._before = (sample.t_s, joules)

    def close(self) -> None:
        """Close the files."""
        for domain in self._domains:
            domain.file.close()


def _name(folder: Path, root: Path) -> str:
    """Name a domain as the kernel does, below its package: intel-rapl:0:2 is "package-0/dram"."""
    own = kernel_files.word(folder / "name") or folder.name
    if folder.name.count(":") < 2:
        return own
    parent = root / "sys/class/powercap" / folder.name.rpartition(":")[0]
    return f"{kernel_files.word(parent / 'name') or parent.name}/{own}"
