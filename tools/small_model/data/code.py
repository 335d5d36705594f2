"""Python source of permissively licensed packages, one document per file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .document import Document

_SKIP = re.compile(
    r"(^|/)(tests?|testing|_vendor|vendor|vendored|locale|locales|conf/locale)/|_pb2|/unicode"
)
_PER_PACKAGE_BYTES = 4_000_000


def read(folders: dict[str, Path]) -> Iterator[Document]:
    """Yield the source files of each package: readable ones, at most 4 MB per package."""
    for package, folder in folders.items():
        total = 0
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder).as_posix()
            if _SKIP.search(relative) or not path.is_file():
                continue
            text = path.read_text("utf-8", "replace").replace("\r\n", "\n")
            if not 600 <= len(text) <= 120_000 or not _readable(text):
                continue
            total += len(text)
            if total > _PER_PACKAGE_BYTES:
                break
            yield Document(f"{package}:{relative}", package, text)


def _readable(text: str) -> bool:
    """Refuse tables of data: mostly digits or hexadecimal, or endless lines."""
    digits = sum(c.isdigit() for c in text) / len(text)
    longest = max(map(len, text.split("\n")))
    return digits < 0.12 and longest < 400
