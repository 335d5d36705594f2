"""Sizes and times as people write them: "1500MiB", "1.5G", "250ms"."""

from __future__ import annotations

import math
import re

from remoe_edge.errors import InputError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[_letter + "ib"] = 1024**_power
    _UNITS[_letter + "b"] = 1000**_power

MIB = 1024 * 1024
_MOST_BYTES = 2**63 - 1  # what a file may have, and what the core counts in


def parse_bytes(text: str) -> int:
    """Turn "1500MiB", "1.5G", "800MB" or "1048576" into bytes.

    K, M, G, T and KiB ... are powers of 1024, KB ... powers of 1000. Raises InputError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InputError(f"'{text}' is not a size; write for example 1500MiB, 1.5G or 800MB")
    n_bytes = float(match[1]) * unit
    if n_bytes > _MOST_BYTES:
        raise InputError(f"'{text}' is more than any machine has; write for example 1500MiB")
    return int(n_bytes)


def mib(n_bytes: float) -> str:
    """Write bytes in MiB, with as many digits as they deserve."""
    value = n_bytes / MIB
    return f"{value:,.0f} MiB" if value >= 100 else f"{value:.2f} MiB"


def parse_ms(text: str) -> float:
    """Turn "250ms", "0.25s" or "250" into milliseconds above 0. Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|)\s*", text.lower())
    value = float(match[1]) * (1000 if match[2] == "s" else 1) if match else 0.0
    if value <= 0 or not math.isfinite(value):
        raise InputError(f"'{text}' is not a time; write for example 250ms or 0.25s")
    return value
