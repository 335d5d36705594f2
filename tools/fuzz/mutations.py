"""Ways in which a GGUF's header can be wrong, each of which says what it did.

A mutation changes a header in place and returns a line that names the key or tensor; it draws from
`random.Random`, so the same seed makes the same file.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence

from gguf import constants

from fuzz.header import BOOL, F32, I32, SCALARS, STRING, U8, U32, Header, Info, Key, Scalar

Mutation = Callable[[Header, random.Random, Sequence[Header]], str]

EDGES = (
    0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 513,
    1023, 1024, 1025, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1, -2,
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    b"", b"\0", b"a\0b", b"\xff\xfe", b"\xc3", b" ", b"none", b"linear", b"yarn", b"longrope", b"llama",
    b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"no_vocab", b"default", b"x" * 1023, b"x" * 1024,
    b"x" * 70000, b"<0x0A>", b"[EMPTY_3]", "▁".encode(), b"gemma4", b"test", b"hybriddna",
)  # fmt: skip


def _known_keys() -> list[str]:
    """Return every key of the format, "{arch}" standing for the architecture."""
    found: set[str] = set()
    for _, room in inspect.getmembers(constants.Keys, inspect.isclass):
        found.update(
            value for name, value in vars(room).items() if name.isupper() and isinstance(value, str)
        )
    return sorted(found)


KNOWN_KEYS = _known_keys()


def _number(draw: random.Random, old: Scalar) -> Scalar:
    if isinstance(old, float) or draw.random() < 0.05:
        return draw.choice(FLOATS)
    near = int(old) if isinstance(old, int) else 0
    return draw.choice(
        (draw.choice(EDGES), near + 1, near - 1, near * 2, near // 2, draw.randrange(2**16))
    )


def _value(draw: random.Random, kind: int, old: Scalar = 0) -> Scalar:
    if kind == STRING:
        text = old if isinstance(old, bytes) else b""
        return draw.choice((draw.choice(TEXTS), text + b"x", text[:-1], text + b"\xe9"))
    return _number(draw, old)


def _some_key(header: Header, draw: random.Random) -> Key:
    """Draw a key, the tokenizer's long arrays no more often than others."""
    return draw.choice(header.keys)


def change_value(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Give a scalar, or one element of an array, another value."""
    key = _some_key(header, draw)
    if not key.values:
        key.values = [0]
    at = draw.randrange(len(key.values))
    key.values[at] = _value(draw, key.type, key.values[at])
    return f"{_name(key)}[{at}] = {key.values[at]!r}"[:160]


def change_type(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Write a key's values as another type."""
    key = _some_key(header, draw)
    key.type = draw.choice((*SCALARS, STRING, U32, I32, F32, BOOL))
    return f"{_name(key)} is of type {key.type}"


def change_shape(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Make an array of a scalar, a scalar of an array, or an array of another length."""
    key = _some_key(header, draw)
    blocks = header.find(header.architecture + b".block_count")
    n_blocks = int(blocks.values[0]) if blocks and isinstance(blocks.values[0], int) else 1
    n_blocks = min(max(n_blocks, 0), 600)
    if not key.is_array:
        n = draw.choice(
            (0, 1, n_blocks, n_blocks, n_blocks, n_blocks + 1, n_blocks - 1, 4, 512, 513)
        )
        key.is_array = True
        key.values = [
            key.values[0] if draw.random() < 0.7 else _value(draw, key.type, key.values[0])
            for _ in range(max(n, 0))
        ]
        return f"{_name(key)} is an array of {len(key.values)}"
    if draw.random() < 0.2:
        key.is_array = False
        return f"{_name(key)} is a scalar"
    n = draw.choice((0, 1, len(key.values) - 1, len(key.values) + 1, len(key.values) * 2))
    filler = key.values[-1] if key.values else _value(draw, key.type)
    key.values = (key.values + [filler] * max(n, 0))[: max(n, 0)]
    return f"{_name(key)} has {len(key.values)} elements"


def repeat_element(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Copy an element of an array over another."""
    arrays = [key for key in header.keys if key.is_array and len(key.values) > 1]
    if not arrays:
        return change_value(header, draw, _)
    key = draw.choice(arrays)
    one, other = draw.sample(range(len(key.values)), 2)
    key.values[one] = key.values[other]
    return f"{_name(key)}[{one}] = [{other}]"


def fill_array(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Give all elements of an array one value."""
    arrays = [key for key in header.keys if key.is_array and key.values]
    if not arrays:
        return change_value(header, draw, _)
    key = draw.choice(arrays)
    value = _value(draw, key.type, key.values[0])
    key.values = [value] * len(key.values)
    return f"{_name(key)} is full of {value!r}"[:160]


def drop_key(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Leave a key out."""
    key = header.keys.pop(draw.randrange(len(header.keys)))
    return f"without {_name(key)}"


def add_key(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Add, or replace, one of the format's keys with a value of a likely type."""
    architecture = header.architecture
    name = draw.choice(KNOWN_KEYS).encode().replace(b"{arch}", architecture)
    kind = draw.choice((U32, U32, U32, F32, BOOL, STRING, I32, U8))
    is_array = draw.random() < 0.2
    n = draw.choice((0, 1, 3, 4, 5, 320)) if is_array else 1
    values = [_value(draw, kind, 1.0 if kind == F32 else 1) for _ in range(n)]
    header.keys = [key for key in header.keys if key.name != name]
    header.keys.append(Key(name, kind, values, is_array))
    return f"with {_name(header.keys[-1])} = {values[:4]!r}"[:160]


def take_key(header: Header, draw: random.Random, others: Sequence[Header]) -> str:
    """Take a key from another model."""
    donor = draw.choice(others)
    key = draw.choice(donor.keys)
    name = key.name.replace(donor.architecture + b".", header.architecture + b".", 1)
    header.keys = [own for own in header.keys if own.name != name]
    header.keys.append(Key(name, key.type, list(key.values), key.is_array))
    return f"{_name(header.keys[-1])} as in {donor.architecture.decode()}"


def change_architecture(header: Header, draw: random.Random, others: Sequence[Header]) -> str:
    """Call the model another architecture, its keys renamed."""
    old, new = header.architecture, draw.choice(others).architecture
    if draw.random() < 0.3:
        new = draw.choice(list(constants.MODEL_ARCH_NAMES.values())).encode()
    for key in header.keys:
        if key.name == b"general.architecture":
            key.values = [new]
        key.name = key.name.replace(old + b".", new + b".", 1)
    return f"architecture {new.decode()}"


def change_extent(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Change one dimension of a tensor."""
    tensor = draw.choice(header.tensors)
    if not tensor.dims:
        return drop_tensor(header, draw, _)
    at = draw.randrange(len(tensor.dims))
    old = tensor.dims[at]
    tensor.dims[at] = draw.choice(
        (old // 2, old - 32, old - 1, old + 1, 1, old * 2, 0, 2**31, 2**62)
    )
    return f"{_name(tensor)}: dimension {at} is {tensor.dims[at]}"


def change_dims(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Give a tensor other dimensions of as many weights, or more of them."""
    tensor = draw.choice(header.tensors)
    way = draw.randrange(4)
    if way == 0:
        draw.shuffle(tensor.dims)
    elif way == 1:
        tensor.dims = [*tensor.dims, 1]
    elif way == 2 and len(tensor.dims) > 1:
        tensor.dims = [*tensor.dims[:-2], tensor.dims[-2] * tensor.dims[-1]]
    else:
        tensor.dims = tensor.dims[:-1]
    return f"{_name(tensor)}: dimensions {tensor.dims}"


def change_tensor_type(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Call a tensor's weights another format."""
    tensor = draw.choice(header.tensors)
    tensor.type = draw.choice((0, 1, 2, 8, 12, 14, 20, 24, 26, 28, 30, 35, 39, draw.randrange(50)))
    return f"{_name(tensor)}: type {tensor.type}"


def change_offset(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Move a tensor in the data section."""
    tensor = draw.choice(header.tensors)
    tensor.offset = draw.choice((0, tensor.offset + 32, tensor.offset - 32, 2**40, 2**64 - 32))
    return f"{_name(tensor)}: offset {tensor.offset}"


def drop_tensor(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Leave a tensor out."""
    tensor = header.tensors.pop(draw.randrange(len(header.tensors)))
    return f"without {_name(tensor)}"


def rename_tensor(header: Header, draw: random.Random, others: Sequence[Header]) -> str:
    """Call a tensor what another model, or another block, calls one."""
    tensor = draw.choice(header.tensors)
    old = tensor.name
    if draw.random() < 0.5:
        tensor.name = draw.choice(draw.choice(others).tensors).name
    else:
        number = draw.choice((b"blk.0.", b"blk.1.", b"blk.9.", b"blk.511.", b"blk.99999."))
        tensor.name = number + old.split(b".", 2)[-1] if old.startswith(b"blk.") else old + b"x"
    return f"{old.decode()} is called {tensor.name.decode()}"


def swap_tensors(header: Header, draw: random.Random, _: Sequence[Header]) -> str:
    """Exchange the names of two tensors."""
    one, other = draw.choice(header.tensors), draw.choice(header.tensors)
    one.name, other.name = other.name, one.name
    return f"{_name(one)} and {_name(other)} are exchanged"


def add_tensor(header: Header, draw: random.Random, others: Sequence[Header]) -> str:
    """Announce a tensor of another model, over bytes that are there already."""
    donor = draw.choice(draw.choice(others).tensors)
    header.tensors.append(Info(donor.name, list(donor.dims), donor.type, 0))
    return f"with tensor {donor.name.decode()}"


# Keys weigh more than tensors: llama.cpp compares every tensor's shape itself, and says so.
MUTATIONS: dict[Mutation, int] = {
    change_value: 24, change_type: 8, change_shape: 10, repeat_element: 4, fill_array: 4, drop_key: 8,
    add_key: 16, take_key: 8, change_architecture: 3, change_extent: 4, change_dims: 3,
    change_tensor_type: 4, change_offset: 2, drop_tensor: 4, rename_tensor: 4, swap_tensors: 3,
    add_tensor: 2,
}  # fmt: skip


def mutate(
    header: Header, draw: random.Random, others: Sequence[Header], only: int | None = None
) -> list[str]:
    """Change a header in one place, sometimes in two or three; return what was done.

    `only` makes that one of the changes and leaves out the rest.
    """
    n = draw.choices((1, 2, 3), (7, 2, 1))[0]
    done = []
    for i in range(n):
        mutation = draw.choices(list(MUTATIONS), list(MUTATIONS.values()))[0]
        own = random.Random(draw.random())
        if header.keys and header.tensors and only in (None, i):
            done.append(mutation(header, own, others))
    return done


def _name(what: Key | Info) -> str:
    return what.name.decode("utf-8", "replace")[:80]
