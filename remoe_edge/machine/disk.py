"""The disk under a file: its read-ahead, and its pages in the page cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files

SYS = Path("/sys")
_DROP = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Disk:
    """Hold a whole disk, not a partition: its name, its `major:minor`, its folder in sysfs."""

    name: str
    number: str
    folder: Path

    @property
    def node(self) -> str:
        """Give its path as programs name it."""
        return f"/dev/{self.name}"

    @property
    def read_ahead_file(self) -> Path:
        """Give the file that holds its read-ahead in KiB."""
        return self.folder / "queue" / "read_ahead_kb"


@dataclass(frozen=True)
class ReadAhead:
    """Hold the read-ahead that was found and the one that holds, in KiB; None where none is known."""

    found_kib: int | None
    kib: int | None
    note: str


def device_of(path: Path) -> int | None:
    """Find the block device that a file lies on, as `os.makedev` numbers it; None where there is none."""
    device = os.stat(path).st_dev
    if os.major(device) != 0:
        return device
    source = _mounted_from(path.resolve())  # a file system with a number of its own, such as btrfs
    return None if source is None else os.stat(source).st_rdev


def disk_of(path: Path, *, sysfs: Path = SYS) -> Disk | None:
    """Find the disk that a file lies on; None where there is none, as for tmpfs or a network."""
    device = device_of(path)
    if device is None:
        return None
    folder = (sysfs / f"dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for each in (folder, folder.parent):  # a partition's queue is its disk's
        if (each / "queue" / "read_ahead_kb").exists():
            return Disk(each.name, (each / "dev").read_text().strip(), each)
    return None


@contextlib.contextmanager
def read_ahead(disk: Disk | None, kib: int | None) -> Iterator[ReadAhead]:
    """Set a disk's read-ahead for as long as the block lasts; None leaves it.

    What cannot be set is left as it is, and said.
    """
    if disk is None:
        yield ReadAhead(None, None, "no block device is known for the model")
        return
    found = int(disk.read_ahead_file.read_text())
    if kib is None or kib == found:
        yield ReadAhead(found, found, "as found")
        return
    try:
        disk.read_ahead_file.write_text(str(kib))
    except OSError as error:
        yield ReadAhead(found, found, f"may not be set ({error.strerror}): stock has it as found")
        return
    try:
        yield ReadAhead(found, int(disk.read_ahead_file.read_text()), f"set, from {found} KiB")
    finally:
        disk.read_ahead_file.write_text(str(found))


def drop_page_cache(paths: Sequence[str | Path]) -> str:
    """Make the next reads of these files come from storage; say in a line how, or why not."""
    os.sync()
    try:
        _DROP.write_text("3")
        return "dropped whole"
    except OSError:
        pass
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            return f"not dropped: {error.strerror}"
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return "the model's pages given up by fadvise; not root, so no more than that"


def _mounted_from(path: Path) -> Path | None:
    best, source = "", None
    for point, mounted in kernel_files.mounts():
        if path.is_relative_to(point) and len(point) >= len(best):
            best, source = point, mounted
    return Path(source) if source is not None and source.startswith("/dev/") else None
