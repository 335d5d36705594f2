"""Write a file over and over, as tests of damaged files do."""

from __future__ import annotations

from pathlib import Path


def rewrite(path: Path, data: bytes) -> Path:
    """Put a new file in the place of an old one.

    What is written over an old one may have to reach the disk at once: ext4 does so lest an editor
    that saves in this way lose both. That takes milliseconds, a new file none.
    """
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
