"""A control group that gives a process a share of the processors: v1 or v2, where it may be made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000


class NoQuotaError(Exception):
    """No control group of processors can be made here."""


@contextlib.contextmanager
def cpu_quota(cores: float, root: Path = ROOT) -> Iterator[Path]:
    """Make a group whose processes get so many cores; it is gone after the block.

    Raises NoQuotaError, which says why.
    """
    v2 = (root / "cgroup.controllers").is_file()
    folder = (root if v2 else root / "cpu") / f"remoe-edge-{os.getpid()}-{cores:g}"
    quota = max(1000, round(cores * PERIOD_US))
    try:
        folder.mkdir()
    except OSError as error:
        raise NoQuotaError(f"no control group at {folder}: {error.strerror}") from error
    try:
        if v2:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        yield folder
    except OSError as error:
        raise NoQuotaError(f"{folder} gives no share of processors: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def join(folder: Path, pid: int) -> None:
    """Put a process with all its threads into a group."""
    (folder / "cgroup.procs").write_text(str(pid))
