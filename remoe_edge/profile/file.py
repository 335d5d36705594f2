"""A profile as a file: read whole and checked, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.errors import InputError, ModelError, ReadError
from remoe_edge.files.atomic import write_bytes
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.native import _core

_MAGIC = b"REMOEPRF"


def read_profile(path: str | Path) -> bytes:
    """Read a profile and check it. Raises InputError if unreadable, ModelError if damaged."""
    with open_regular(path, "profile") as file:
        try:
            data = file.read(len(_MAGIC))
            if data == _MAGIC:  # a model named by mistake is not read to its end
                data += file.read()
        except OSError as error:
            raise InputError(f"cannot read the profile {path}: {error.strerror}") from error
    parts = _core.parse_profile(data, str(path))
    try:
        json_object(parts["meta"])
    except ValueError as error:
        raise ModelError(
            f"{path}: what it says of itself cannot be read ({error}); fit it again with "
            "`remoe-edge profile`"
        ) from error
    return data


def save_profile(data: bytes, path: str | Path) -> None:
    """Write a profile so that a reader finds the old file or the whole new one, never a part.

    Raises InputError where it cannot be written.
    """
    try:
        write_bytes(data, Path(path))
    except ReadError as error:
        raise InputError(str(error)) from error
