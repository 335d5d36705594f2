"""Open and read small files that anybody may have written: no pipes, no devices, no surprises."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from remoe_edge.errors import InputError

MOST_BYTES = 256 << 20  # of a pipe or a device
_BYTE_ORDER_MARK = "\ufeff"


def open_regular(path: str | Path, what: str) -> BinaryIO:
    """Open a regular file to read; `what` it should be goes into the message.

    A pipe would block and a device never end. Raises InputError where it cannot be opened or is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the {what} {path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"cannot read the {what} {path}: it is no regular file")
    return open(descriptor, "rb")


def read_whole(path: str | Path, what: str) -> bytes:
    """Read a file or a pipe to its end; of what has none, such as /dev/zero, a fair share is tried.

    Raises InputError where it cannot be read, or is no file and longer than that.
    """
    try:
        with open(path, "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
            return _read_to_end(file, f"the {what} {path}")
    except MemoryError as error:  # a file with holes may be larger than any memory
        raise InputError(f"cannot read the {what} {path}: it is larger than memory") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the {what} {path}: {reason}") from error


def read_text(path: str | Path, what: str) -> str:
    """Read a text as `read_whole` reads bytes, without the mark that some editors put before it.

    Raises InputError, with the offset of what is no UTF-8.
    """
    try:
        return read_whole(path, what).decode().removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: at offset {error.start}: no UTF-8 text") from error


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a JSON lines file that are not blank, each with its number.

    Only a newline ends one: the texts in it may hold what str.splitlines takes for an end (U+2028).
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_to_end(stream: BinaryIO, what: str) -> bytes:
    """Read a stream. Raises InputError where it goes on and on."""
    data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputError(f"{what} has no end: {MOST_BYTES >> 20} MiB were read")
    return data


def json_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError where it is none, however it is damaged."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found
