"""A path that a caller has given: what the kernel takes is taken, and what it never will is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from remoe_edge.errors import InputError


def path_argument(name: str, value: object) -> Path:
    """Turn str, bytes or os.PathLike into a path. Raises InputError, which calls it `name`.

    Refused are what is no path, an empty one, one with a zero byte, and one whose name is too long.
    """
    if not isinstance(value, str | bytes | os.PathLike):
        raise InputError(f"{name} is a path, not {value!r}")
    text = os.fsdecode(value)
    if not text:
        raise InputError(f"{name} is an empty path")
    try:
        os.lstat(text)
    except ValueError as error:  # a zero byte, or what the file system's encoding cannot spell
        raise InputError(f"{name} is no path: {error}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{name} is longer than a path can be: {text[:80]}...") from None
    return Path(text)
