"""GGUF files of this program's own: each says by a key that it is one, and of which version.

To other programs they are adapters, which no model is.
"""

from __future__ import annotations

import os

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.native import _core


def open_own(
    path: str | os.PathLike[str], prefix: str, version: int, *, what: str, otherwise: str
) -> _core.ModelFile:
    """Open a file whose keys begin with `prefix`. Raises UnsupportedError for another version.

    what: names such a file, "an overlay". otherwise: what InputError says that any other file is.
    """
    file = _core.ModelFile.open(path)
    found = file.unsigned(f"{prefix}.version")
    if found is None:
        raise InputError(f"{path} is {otherwise}")
    if found != version:
        raise UnsupportedError(f"{path} is {what} of version {found}, this program reads {version}")
    return file


def open_model(path: str | os.PathLike[str]) -> _core.ModelFile:
    """Open a model to read its header. Raises InputError for an adapter, such as an overlay."""
    file = _core.ModelFile.open(path)
    file.check_no_adapter()
    return file
