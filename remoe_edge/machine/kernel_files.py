"""Small files of /proc, /sys and the cgroups, read once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
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
    return whole(text(path).strip())


def whole(word: str) -> int | None:
    """Turn a word of a kernel file into a whole number; None for none, and for more than any counts."""
    return int(word) if _WHOLE.fullmatch(word) else None


def mounts(root: Path = Path("/")) -> Iterator[tuple[str, str]]:
    """Yield each mount point, and the device or the like that is mounted there."""
    try:
        lines = (root / "proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(b" - ")
        fields, source = left.split(), right.split()
        if len(fields) >= 5 and len(source) >= 2:
            yield _unescaped(fields[4]), _device(_unescaped(source[1]), fields[2], root)


def _device(source: str, number: bytes, root: Path) -> str:
    """Name the device behind /dev/root, as which a kernel without an initial RAM disk mounts it."""
    if source != "/dev/root":
        return source
    folder = root / "sys/dev/block" / os.fsdecode(number)
    return f"/dev/{folder.resolve().name}" if folder.exists() else source


def _unescaped(name: bytes) -> str:
    r"""Turn what the kernel writes into a path: blanks and backslashes are \040 and \134 there."""
    return os.fsdecode(re.sub(rb"\\([0-3][0-7]{2})", lambda found: bytes([int(found[1], 8)]), name))
