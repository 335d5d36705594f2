"""Let engines that keep one file add to it one after the other, also from several processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Hold others off who would read a file and write it anew meanwhile: what they add would be gone.

    The lock is the folder's, since the file itself is replaced. It is held for the block alone, so
    nobody waits long. Where it cannot be had, as in some folders over a network, nobody waits.
    """
    folder = Path(os.path.realpath(path)).parent
    descriptor = -1
    try:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
