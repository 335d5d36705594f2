"""Read arrays out of an .npz that anybody may have written, allocating by what is there.

`numpy.load` makes an array of the size that its header claims, before it has seen a byte of it, and
lets out whatever zip, zlib and the header's parser raise.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError
from remoe_edge.files.reading import open_regular

Arrays = dict[str, npt.NDArray[Any]]

# Deflate shrinks zeros a thousandfold; routing and activations shrink ten times at most.
_MOST_RATIO = 100
_ALWAYS_BYTES = 64 << 20

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    path: str | Path, what: str, names: Sequence[str], optional: Sequence[str] = ()
) -> Arrays:
    """Read the arrays `names`, and those of `optional` that are there; others are not looked at.

    Raises InputError, naming `what` the file should be, where it is damaged, lacks one of `names`, or
    would unfold to far more than its own size.
    """
    with open_regular(path, what) as file:
        try:
            room = max(_ALWAYS_BYTES, _MOST_RATIO * os.fstat(file.fileno()).st_size)
            with zipfile.ZipFile(file) as archive:
                held = {entry.filename: entry for entry in archive.infolist()}
                found: Arrays = {}
                for name in (*names, *optional):
                    entry = held.get(f"{name}.npy")
                    if entry is None and name in names:
                        raise ValueError(f"it holds no array `{name}`")
                    if entry is None:
                        continue
                    with archive.open(entry) as member:
                        found[name] = _array(member, name, room)
                    room -= found[name].nbytes
                return found
        # A damaged zip raises a dozen kinds, from zlib.error to RuntimeError and RecursionError.
        except Exception as error:
            raise InputError(f"cannot read the {what} {path}: {error}") from error


def _array(member: IO[bytes], name: str, room: int) -> npt.NDArray[Any]:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(f"`{name}` has a header of version {version[0]}.{version[1]}")
    shape, fortran, dtype = _HEADERS[version](member)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"`{name}` is no array of numbers")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > room:
        raise ValueError(f"`{name}` would unfold to {n_bytes >> 20} MiB, far more than its file")
    raw = member.read(n_bytes + 1)
    if len(raw) != n_bytes:
        raise ValueError(f"`{name}` holds other than the {n_bytes} bytes that its header says")
    if n_bytes == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
