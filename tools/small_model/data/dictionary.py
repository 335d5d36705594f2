"""Dictionaries in the dict format: headwords and their entries."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from .document import Document
from .plain_text import tidy

_DIGITS = {
    c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}
_SENSE = re.compile(r"^\s*(?:(n|v|adj|adv) )?(\d+): ", re.M)


def read(folders: dict[str, Path], gcide_bytes: int = 14_000_000) -> Iterator[Document]:
    """Yield the entries of WordNet, GCIDE (its first part), FOLDOC and the Jargon File."""
    for package in ("dict-wn", "dict-gcide", "dict-foldoc", "dict-jargon"):
        total = 0
        for word, entry in entries(folders[package]):
            if len(entry) < 60 or word.startswith("00-"):
                continue
            total += len(entry)
            if package == "dict-gcide" and total > gcide_bytes:
                break
            yield Document(f"{package}:{word}", package, entry)


def entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (headword, cleaned entry) of a dict package, each stretch of text once."""
    data = gzip.decompress(next(folder.glob("**/*.dict.dz")).read_bytes())
    seen: set[int] = set()
    for line in next(folder.glob("**/*.index")).read_text("utf-8", "replace").splitlines():
        word, offset, length = line.split("\t")[:3]
        start, size = _number(offset), _number(length)
        if start in seen:
            continue
        seen.add(start)
        yield word, _clean(data[start : start + size].decode("utf-8", "replace"))


def first_sense(entry: str) -> tuple[str, str, str] | None:
    """Return (word, part of speech, gloss) of a WordNet entry's first sense, or None."""
    word, _, rest = entry.partition("\n")
    found = re.match(
        r"\s*(n|v|adj|adv)(?: 1)?: (.*?)(?=\s+(?:\d+|n|v|adj|adv)(?: \d+)?: |\Z)", rest, re.S
    )
    if not found:
        return None
    gloss = re.sub(r"\s*\[(?:syn|ant|also)[^\]]*\]", "", found.group(2))
    return word.strip(), found.group(1), re.sub(r"\s+", " ", gloss).strip()


def _number(code: str) -> int:
    value = 0
    for c in code:
        value = value * 64 + _DIGITS[c]
    return value


def _clean(text: str) -> str:
    text = re.sub(r"\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s*\[1913 Webster\]|\s*\[PJC\]|\s*\[WordNet[^\]]*\]", "", text)
    text = re.sub(r"^ +", lambda m: " " * min(len(m.group()), 2), text, flags=re.M)
    return tidy(text)
