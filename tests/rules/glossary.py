"""Words that the glossary bans, looked for in the names of the code and in the prose of the pages."""

from __future__ import annotations

import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rules import docs

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
_RECORDS = ("docs/experiments/", "docs/design-decisions.md", "docs/glossary.md", "CHANGELOG.md")


@dataclass(frozen=True)
class Ban:
    """A word that no name may hold, where it is banned, and names that may hold it all the same."""

    word: str
    folder: str = ""
    unless: tuple[str, ...] = ()


def bans(page: str) -> tuple[list[Ban], list[str]]:
    """Read the banned words and phrases from the glossary's tables."""
    words: list[Ban] = []
    phrases: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 4:
            continue
        for part in cells[2].split(";"):
            banned, _, allowed = part.partition("but")
            folder = match[1] if (match := re.search(r"\bin (\w+)", banned)) else ""
            unless = tuple(re.findall(r"`(\w+)`", allowed))
            words += [Ban(word, folder, unless) for word in re.findall(r"`(\w+)`", banned)]
        phrases += re.findall(r'"([^"]+)"', cells[3])
    return words, phrases


def names(root: Path) -> dict[str, dict[str, str]]:
    """Find banned words in names: by area (two folders deep), each word with one place."""
    words, _ = bans((root / "docs/glossary.md").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for folder in ("csrc", "remoe_edge"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".h", ".cc", ".py", ".pyi"} or not path.is_file():
                continue
            place = path.relative_to(root)
            area = "/".join(place.parts[:2])
            for line, name in [(0, path.stem), *_identifiers(path)]:
                for ban in words:
                    if place.parts[0].startswith(ban.folder) and _holds(name, ban):
                        found[area].setdefault(ban.word, f"{place}:{line}: {name}")
    return dict(found)


def prose(root: Path) -> dict[str, dict[str, str]]:
    """Find banned phrases in the pages: by page, each phrase with one place."""
    _, phrases = bans((root / "docs/glossary.md").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in docs.pages(root):
        place = str(path.relative_to(root))
        if place.startswith(_RECORDS):
            continue
        text = re.sub(r"\s+", " ", docs.without_code(path.read_text(encoding="utf-8")))
        for phrase in phrases:
            match = re.search(rf"\b{re.escape(phrase)}\b", text, re.I)
            if match:
                around = text[max(0, match.start() - 30) : match.end() + 30]
                found[place][phrase] = f"{place}: ...{around}..."
    return dict(found)


def _holds(name: str, ban: Ban) -> bool:
    for allowed in ban.unless:
        name = re.sub(allowed.replace("_", "_?"), "", name, flags=re.I)
    return ban.word in [word.lower() for word in _WORD.findall(name)]


def _identifiers(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".py", ".pyi"}:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string
        return
    code = _COMMENT_OR_STRING.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(code.splitlines(), 1):
        for name in re.findall(r"[A-Za-z_]\w*", line):
            yield number, name
