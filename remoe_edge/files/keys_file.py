"""A file of keys, before OpenSSL sees it: that reads a pipe for ever, and asks for passwords."""

from __future__ import annotations

import os
from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.files.reading import open_regular

_MOST_BYTES = 1 << 20


def check_keys_file(path: str | os.PathLike[str]) -> Path:
    """Return a PEM file's path. Raises InputError for what is none, and for a key with a password."""
    with open_regular(Path(path), "keys") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path} is too long for a file of keys: more than {_MOST_BYTES} bytes")
    if b"ENCRYPTED" in data:
        raise InputError(f"{path}: its private key is protected by a password; take it off first")
    return Path(path)
