"""A memory cgroup of one's own, version 1 or 2, for as long as a `with` lasts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


class NoCgroupError(Exception):
    """Say why there is none."""


@dataclass(frozen=True)
class Cgroup:
    """Hold the folder and its files' names."""

    folder: Path
    peak_file: str

    def join(self) -> None:
        """Move the calling process in; for `preexec_fn`."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        """Read the highest use so far, page cache included, by the kernel's account."""
        return int((self.folder / self.peak_file).read_text())


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[Cgroup]:
    """Make a cgroup that may use `limit_bytes`. Raises NoCgroupError."""
    name = f"remoe-edge-{os.getpid()}"
    if (V1 / "memory.limit_in_bytes").exists():
        group = Cgroup(V1 / name, "memory.max_usage_in_bytes")
        limit = "memory.limit_in_bytes"
    elif "memory" in _controllers():
        group = Cgroup(V2 / name, "memory.peak")
        limit = "memory.max"
    else:
        raise NoCgroupError("no memory controller for cgroups here")
    try:
        group.folder.mkdir()
        (group.folder / limit).write_text(str(limit_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.folder.rmdir()
        raise NoCgroupError(f"may not make a memory cgroup: {error}") from error
    try:
        yield group
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.folder.rmdir()
                break
            time.sleep(0.1)


def _controllers() -> list[str]:
    try:
        return (V2 / "cgroup.subtree_control").read_text().split()
    except OSError:
        return []
