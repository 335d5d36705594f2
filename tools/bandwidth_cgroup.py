"""A cap on what may be read from a disk, by a cgroup (version 1 or 2), for as long as a `with` lasts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memory_cgroup import V2, NoCgroupError

V1 = Path("/sys/fs/cgroup/blkio")


@dataclass(frozen=True)
class Throttle:
    """Hold the folder of the cgroup."""

    folder: Path

    def join(self) -> None:
        """Move the calling process in; for `preexec_fn`."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


def device_of(path: Path) -> str:
    """Return "major:minor" of the whole disk under `path`. Raises NoCgroupError."""
    source = subprocess.run(
        ["findmnt", "-no", "SOURCE", "-T", str(path)], capture_output=True, text=True
    ).stdout.strip()
    node = Path("/sys/class/block") / Path(source).name
    if not node.exists():
        raise NoCgroupError(f"{path} lies on no block device")
    node = node.resolve()
    disk = node.parent if (node / "partition").exists() else node
    return (disk / "dev").read_text().strip()


@contextlib.contextmanager
def limited(path: Path, bytes_per_s: int) -> Iterator[Throttle]:
    """Make a cgroup that reads the disk under `path` no faster. Raises NoCgroupError.

    Version 2 has one tree: there the processes leave the memory cgroup that they were in.
    """
    device = device_of(path)
    name = f"remoe-edge-{os.getpid()}"
    if V1.exists():
        folder, file, line = (
            V1 / name,
            "blkio.throttle.read_bps_device",
            f"{device} {bytes_per_s}",
        )
    else:
        folder, file, line = V2 / name, "io.max", f"{device} rbps={bytes_per_s}"
    try:
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(line)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise NoCgroupError(f"may not cap the disk's bandwidth: {error}") from error
    try:
        yield Throttle(folder)
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)
