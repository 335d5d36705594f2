"""The machine's memory and swap, in bytes."""

from __future__ import annotations

import re
from pathlib import Path

from remoe_edge.telemetry.attribute import Attribute
from remoe_edge.telemetry.sample import Missing, Sample

_WANTED = re.compile(
    r"^(MemTotal|MemAvailable|Cached|SwapTotal|SwapFree):\s+([0-9]{1,18})\b", re.MULTILINE
)


class Ram:
    """Read /proc/meminfo."""

    name = "meminfo"

    def __init__(self, root: Path) -> None:
        try:
            self._file = Attribute(root / "proc/meminfo")
        except OSError as error:
            raise Missing(f"no /proc/meminfo ({error.strerror})") from None

    def read(self, sample: Sample) -> None:
        """Fill in `total`, `available`, `page_cache` and `swap_used`."""
        kib = {name: int(number) for name, number in _WANTED.findall(self._file.text(4096))}
        for ours, theirs in (
            ("total", "MemTotal"), ("available", "MemAvailable"), ("page_cache", "Cached"),
        ):  # fmt: skip
            if theirs in kib:
                sample.memory_bytes[ours] = kib[theirs] * 1024
        if "SwapTotal" in kib and "SwapFree" in kib:
            used = (kib["SwapTotal"] - kib["SwapFree"]) * 1024
            sample.memory_bytes.setdefault("swap_used", used)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
