"""A small kernel file that is read again and again, without opening it again."""

from __future__ import annotations

import os
from pathlib import Path

_BYTES = 1 << 16


class Attribute:
    """Hold a file of /proc or /sys open. Raises OSError where it cannot be opened or read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def text(self, n_bytes: int = _BYTES) -> str:
        """Read it anew."""
        return os.pread(self._fd, n_bytes, 0).decode("utf-8", "replace").strip()

    def number(self) -> float:
        """Read its first word as a number. Raises ValueError where it is none."""
        return float(self.text(64).split()[0])

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def opened(path: Path) -> Attribute | None:
    """Open a file if it holds a number that can be read now."""
    try:
        attribute = Attribute(path)
    except OSError:
        return None
    try:
        attribute.number()
    except (OSError, ValueError, IndexError):
        attribute.close()
        return None
    return attribute


def value(attribute: Attribute) -> float | None:
    """Read a number; None while the driver has none (a sleeping sensor answers with an error)."""
    try:
        return attribute.number()
    except (OSError, ValueError, IndexError):
        return None
