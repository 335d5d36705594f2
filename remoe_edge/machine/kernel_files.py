"""Small files of /proc, /sys and the cgroups, read once."""

from __future__ import annotations

import re
from pathlib import Path

_WHOLE = re.compile(r"-?[0-9]{1,30}")


def text(path: Path) -> str:
    """Read a file; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def word(path: Path) -> str:
    """Read a short file without the blanks and NULs around it; empty where it cannot be read."""
    return text(path).strip("\x00\n\t ")


def number(path: Path) -> int | None:
    """Read a whole number; None where there is none."""
    found = text(path).strip()
    return int(found) if _WHOLE.fullmatch(found) else None
