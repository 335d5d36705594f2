"""The build ID of an ELF library: what its linker made of all that is in it, and left in a note.

Versions and commits are what a source tree says of itself, and trees without git, or changed ones, say
too little. Two libraries with the same build ID hold the same code.
"""

from __future__ import annotations

import struct
from pathlib import Path

_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3
# By class: where the program headers' place, size and number stand, and each header's fields.
_CLASSES = {1: ("<I", 28, "<HH", 42, "<IIIIIIII"), 2: ("<Q", 32, "<HH", 54, "<IIQQQQQQ")}


def build_id(library: Path) -> str:
    """Read the build ID, in hexadecimal; empty where the linker wrote none."""
    data = library.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] not in _CLASSES:
        return ""
    place, at, sizes, sizes_at, header = _CLASSES[data[4]]
    (begin,) = struct.unpack_from(place, data, at)
    size, number = struct.unpack_from(sizes, data, sizes_at)
    for i in range(number):
        kind, *fields = struct.unpack_from(header, data, begin + i * size)
        offset, n_bytes = (fields[0], fields[3]) if data[4] == 1 else (fields[1], fields[4])
        if kind == _PT_NOTE:
            found = _in_notes(data[offset : offset + n_bytes])
            if found:
                return found
    return ""


def _in_notes(notes: bytes) -> str:
    at = 0
    while at + 12 <= len(notes):
        n_name, n_value, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        value_at = name_at + (n_name + 3) // 4 * 4
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + n_name] == b"GNU\0":
            return notes[value_at : value_at + n_value].hex()
        at = value_at + (n_value + 3) // 4 * 4
    return ""
