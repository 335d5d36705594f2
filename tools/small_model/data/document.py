"""The two things every reader yields: documents and conversations."""

from __future__ import annotations

import zlib
from typing import NamedTuple


class Document(NamedTuple):
    """A text that is held out or trained on as a whole, never cut between the two."""

    key: str  # stable name: source and path or title; the split hangs on it
    source: str  # name of the package it came from
    text: str


class Conversation(NamedTuple):
    """A chat, as (user, assistant) turns, that belongs to one document's side of the split."""

    key: str
    source: str
    turns: tuple[tuple[str, str], ...]


def is_held_out(key: str, share: float) -> bool:
    """Tell whether the document `key` is held out, by a hash that never changes between runs."""
    return zlib.crc32(b"held-out:" + key.encode()) / 2**32 < share
