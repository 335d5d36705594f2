"""How experts would be read from where a model lies: io_uring, O_DIRECT, read-ahead."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from remoe_edge.errors import RemoeError
from remoe_edge.inspect.doctor.check import INFO, OFF, OK, Check
from remoe_edge.machine import kernel_files
from remoe_edge.machine.disk import disk_of

_PAGE_BYTES = 4096


def readers(path: Path) -> list[Check]:
    """Read a page through each way that an engine may read, from where `path` lies."""
    folder = path if path.is_dir() else path.parent
    try:
        with _file_on(path) as file:
            return [_io_uring(file), _direct(file, folder)]
    except OSError as error:
        detail = f"not tried: no file to read in {folder} ({error.strerror})"
        advice = "name a model: remoe-edge doctor GGUF"
        return [Check(name, INFO, detail, advice) for name in ("io_uring", "O_DIRECT")]


def _io_uring(file: Path) -> Check:
    advice = (
        "nothing: threads read instead, about as fast; for io_uring: Linux 5.5 or newer, and neither "
        "kernel.io_uring_disabled nor a container's seccomp profile against it"
    )
    try:
        failure = _read_a_page(file, "io_uring")
    except RemoeError as error:
        return Check("io_uring", OFF, str(error), advice)
    if failure:
        return Check("io_uring", OFF, failure, advice)
    return Check("io_uring", OK, "a page was read through it")


def _read_a_page(file: Path, backend: str) -> str:
    """Read the first page through a reader; return what went wrong, "" if nothing did."""
    from remoe_edge.native import _core

    reader = _core.Reader([str(file)], backend=backend)
    try:
        tag = reader.submit([(0, 0, _PAGE_BYTES)])
        answer = reader.drain()[tag]
    finally:
        reader.close()
    if isinstance(answer, str):
        return answer
    with file.open("rb") as plain:
        same = plain.read(_PAGE_BYTES) == answer
    return "" if same else f"it read other bytes of {file} than a plain read"


def _direct(file: Path, folder: Path) -> Check:
    from remoe_edge.native import _core

    advice = "experts are read through the page cache, which is dropped behind"
    try:
        reader = _core.Reader([str(file)], backend="pread")
    except RemoeError as error:
        return Check("O_DIRECT", OFF, str(error), advice)
    notes, direct = reader.notes, reader.direct
    reader.close()
    if direct:
        return Check("O_DIRECT", OK, f"proven by a read in {folder}")
    return Check("O_DIRECT", OFF, "; ".join(notes) or f"refused in {folder}", advice)


def read_ahead(path: Path) -> Check:
    """Tell the read-ahead of the disk that `path` lies on."""
    disk = disk_of(path)
    if disk is None or (kib := kernel_files.number(disk.read_ahead_file)) is None:
        return Check("read-ahead", INFO, f"no block device is known for {path}")
    return Check(
        "read-ahead", INFO,
        f"{kib} KiB for {path}; it slows stock mmap when large, not remoe-edge",
    )  # fmt: skip


@contextlib.contextmanager
def _file_on(path: Path) -> Iterator[Path]:
    """Give a file to read on the file system of `path`: itself, or a small one for a moment."""
    if path.is_file() and path.stat().st_size >= _PAGE_BYTES:
        yield path
        return
    folder = path if path.is_dir() else path.parent
    found = next((each for each in sorted(folder.glob("*.gguf")) if each.is_file()), None)
    if found is not None and found.stat().st_size >= _PAGE_BYTES:
        yield found
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".remoe-edge-") as file:
        file.write(os.urandom(16 * _PAGE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)
