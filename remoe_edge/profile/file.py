"""A profile as a file: read whole and checked, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from remoe_edge import _core
from remoe_edge.errors import InputError


def read_profile(path: str | Path) -> bytes:
    """Read a profile and check it. Raises InputError if unreadable, ModelError if damaged."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the profile {path}: {error.strerror}") from error
    _core.parse_profile(data, str(path))
    return data


def save_profile(data: bytes, path: str | Path) -> None:
    """Write a profile so that a reader finds the old file or the whole new one, never a part."""
    path = Path(path)
    try:
        handle, part = tempfile.mkstemp(dir=path.parent or ".", prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(part, 0o666 & ~umask)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise InputError(f"cannot write the profile {path}: {error.strerror}") from error
