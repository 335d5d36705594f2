"""A GGUF's header as Python values that can be changed and written again, wrong on purpose if need be.

The gguf package writes only what makes sense; a fuzzer wants lengths, types and counts that do not.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field

# GGUF value types: number -> how struct writes one; strings and arrays apart.
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
U8, U32, I32, F32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9

Scalar = int | float | bool | bytes


@dataclass
class Key:
    """One key: `values` has one element for a scalar, any number for an array."""

    name: bytes
    type: int  # of the elements
    values: list[Scalar]
    is_array: bool = False


@dataclass
class Info:
    """What the header says of one tensor."""

    name: bytes
    dims: list[int]
    type: int
    offset: int  # in the data section


@dataclass
class Header:
    """Everything before the data section."""

    version: int
    keys: list[Key] = field(default_factory=list)
    tensors: list[Info] = field(default_factory=list)

    def find(self, name: bytes) -> Key | None:
        """Return a key by its name."""
        return next((key for key in self.keys if key.name == name), None)

    @property
    def architecture(self) -> bytes:
        """Return general.architecture, b"" where it is missing or no string."""
        key = self.find(b"general.architecture")
        value = key.values[0] if key and key.values else b""
        return value if isinstance(value, bytes) else b""

    def copy(self) -> Header:
        """Return a copy that shares nothing with this one."""
        return copy.deepcopy(self)


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def number(self, form: str) -> Scalar:
        (value,) = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return value  # type: ignore[no-any-return]

    def count(self, form: str = "<Q") -> int:
        return int(self.number(form))

    def text(self) -> bytes:
        n_bytes = self.count()
        self.at += n_bytes
        return self.raw[self.at - n_bytes : self.at]

    def value(self, kind: int) -> Scalar:
        return self.text() if kind == STRING else self.number(SCALARS[kind])


def parse(raw: bytes) -> tuple[Header, bytes]:
    """Read a well-formed file: (header, data section)."""
    reader = _Reader(raw)
    reader.at = 4
    header = Header(reader.count("<I"))
    n_tensors, n_keys = reader.count(), reader.count()
    for _ in range(n_keys):
        name, kind = reader.text(), reader.count("<I")
        if kind == ARRAY:
            kind, n = reader.count("<I"), reader.count()
            header.keys.append(Key(name, kind, [reader.value(kind) for _ in range(n)], True))
        else:
            header.keys.append(Key(name, kind, [reader.value(kind)]))
    for _ in range(n_tensors):
        name, n_dims = reader.text(), reader.count("<I")
        dims = [reader.count() for _ in range(n_dims)]
        header.tensors.append(Info(name, dims, reader.count("<I"), reader.count()))
    return header, raw[_aligned(reader.at, _alignment(header)) :]


def write(header: Header, data: bytes) -> bytes:
    """Write a file again; numbers that do not fit their type are wrapped."""
    out = bytearray(b"GGUF")
    out += struct.pack("<IQQ", header.version, len(header.tensors), len(header.keys))
    for key in header.keys:
        out += _text(key.name)
        if key.is_array:
            out += struct.pack("<IIQ", ARRAY, key.type, len(key.values))
            out += b"".join(_encode(key.type, value) for value in key.values)
        else:
            out += struct.pack("<I", key.type) + _encode(key.type, (key.values or [0])[0])
    for tensor in header.tensors:
        out += _text(tensor.name) + struct.pack("<I", len(tensor.dims))
        out += b"".join(struct.pack("<Q", dim % 2**64) for dim in tensor.dims)
        out += struct.pack("<IQ", tensor.type, tensor.offset % 2**64)
    out += bytes(_aligned(len(out), _alignment(header)) - len(out))
    return bytes(out) + data


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _encode(kind: int, value: Scalar) -> bytes:
    if kind == STRING:
        return _text(value if isinstance(value, bytes) else str(value).encode())
    form = SCALARS[kind]
    if isinstance(value, bytes):
        value = len(value)
    if kind in (6, 12):
        try:
            return struct.pack(form, float(value))
        except OverflowError:
            return struct.pack(form, float("inf"))
    if kind == BOOL:
        return struct.pack(form, bool(value))
    n_bytes = struct.calcsize(form)
    whole = int(value) if value == value and abs(value) < 2**64 else 0
    return (whole % 2 ** (8 * n_bytes)).to_bytes(n_bytes, "little")


def _alignment(header: Header) -> int:
    key = header.find(b"general.alignment")
    value = key.values[0] if key and key.values and not key.is_array else 32
    return value if isinstance(value, int) and 0 < value <= 4096 else 32


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
