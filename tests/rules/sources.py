"""Files: how long, how named, how they begin, and what must not stand in them."""

from __future__ import annotations

import re
from pathlib import Path

from rules import docs, layers

# Lines at most, by folder; tests of C++ stand beside the code.
MOST_LINES = {"remoe_edge": 400, "csrc": 400, "tools": 400, "tests": 600, "_test.cc": 600}
_CODE = {".py", ".pyi", ".h", ".cc"}
_TEXT = {*_CODE, ".md", ".toml", ".txt", ".sh", ".yml", ".yaml", ".cmake", ".css"}
_EMPTY_NAMES = re.compile(r"(?:^|_)(utils?|managers?|helpers?|misc|common)(?:_|$)")
_EMPTY_CLASSES = re.compile(r"^\s*(?:class|struct)\s+(\w*(?:Manager|Helper|Utils?))\b", re.M)
_PROMISE = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
_MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:home|root|work|Users|mnt/c)/\w")
_COPIED_TEXTS = ("models/heldout/", "LICENSE")


def long_files(root: Path) -> dict[str, int]:
    """Name files with more lines than their folder's bound, with how many they have."""
    found = {}
    for path in docs.files(root):
        place = path.relative_to(root)
        if path.suffix not in _CODE - {".pyi"} or place.parts[0] not in MOST_LINES:
            continue  # a stub is as long as what it describes
        bound = MOST_LINES["_test.cc" if path.name.endswith("_test.cc") else place.parts[0]]
        n_lines = path.read_text(encoding="utf-8").count("\n")
        if n_lines > bound:
            found[str(place)] = n_lines
    return found


def empty_names(root: Path) -> list[str]:
    """Report files, folders and classes whose name says that something is done, and not what."""
    said = []
    for path in docs.files(root):
        place = path.relative_to(root)
        said += [f"{place}: {part}" for part in place.parts if _EMPTY_NAMES.search(Path(part).stem)]
        if path.suffix in _CODE:
            text = path.read_text(encoding="utf-8")
            said += [f"{place}: {name}" for name in _EMPTY_CLASSES.findall(text)]
    return said


def headers(root: Path) -> list[str]:
    """Report C++ headers that do not open with 5 to 12 lines that name threads.

    Lines of a drawing or a table (indented by two or more) are not counted.
    """
    said = []
    for path in sorted((root / "csrc").rglob("*.h")):
        opening = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("//"):
                break
            opening.append(line[2:])
        n_lines = sum(not line.startswith("  ") for line in opening)
        place = path.relative_to(root)
        if not 5 <= n_lines <= 12:
            said.append(f"{place}: opens with {n_lines} lines of comment, not 5 to 12")
        if not re.search(r"\bthread", " ".join(opening), re.I):
            said.append(f"{place}: its opening does not say how threads may use it")
    return said


def unkept(root: Path) -> list[str]:
    """Report work that was put off without an issue's number: TODO(#12)."""
    return _lines(root, _CODE | {".md", ".sh"}, _PROMISE, "no issue")


def machine_paths(root: Path) -> list[str]:
    """Report paths that exist on one machine only."""
    return _lines(root, _TEXT, _MACHINE_PATH, "a path of one machine")


def getenv(root: Path) -> list[str]:
    """Report C++ that reads the environment, tests aside."""
    found = _lines(root, {".c", ".cc", ".h"}, re.compile(r"\bgetenv\("), "reads the environment")
    return [
        line
        for line in found
        if line.startswith("csrc/")
        and "_test.cc:" not in line
        and line.split(":")[0] not in layers.CPP_READS_ENVIRONMENT
    ]


def raw_threads(root: Path) -> list[str]:
    """Report C++ that starts a thread by itself, tests aside: where none is to be had, that throws."""
    starts = re.compile(r"\bstd::(?:j?thread(?:\s+\w+)?\s*[({]|async\b)|\bpthread_create\(")
    found = _lines(root, {".c", ".cc", ".h"}, starts, "starts a thread without StartThread()")
    return [
        line
        for line in found
        if line.startswith("csrc/")
        and not re.search(r"_test\.cc:|/testing/|^csrc/base/thread\.h:", line)
    ]


def source_tree_first(root: Path) -> list[str]:
    """Report modules that put the source tree on the path of whoever imports them.

    An installed remoe_edge is then hidden, for this process and for those it spawns, by a tree that has
    no compiled core.
    """
    added = re.compile(r"^sys\.path\b.*(?:str\(ROOT\)|parents\[2\]\)\)|parent\.parent\.parent\)\))")
    found = _lines(root, {".py"}, added, "puts the source tree on the path")
    return [line for line in found if line.startswith(("tools/", "tests/"))]


def line_ends(root: Path) -> list[str]:
    """Report text files with CR, without an end of the last line, or with blanks at a line's end."""
    said = []
    for path in docs.files(root):
        place = path.relative_to(root)
        if path.suffix not in _TEXT or str(place).startswith(_COPIED_TEXTS):
            continue
        data = path.read_bytes()
        if b"\r" in data:
            said.append(f"{place}: CR")
        if data and not data.endswith(b"\n"):
            said.append(f"{place}: no line end at the end")
        if path.suffix in _CODE and re.search(rb"[ \t]\n", data):
            said.append(f"{place}: blanks at a line's end")
    return said


def file_names(root: Path) -> list[str]:
    """Report file names that need quoting or another alphabet somewhere."""
    safe = re.compile(r"[A-Za-z0-9._/-]+")
    places = [str(path.relative_to(root)) for path in docs.files(root)]
    return [place for place in places if not safe.fullmatch(place)]


def _lines(root: Path, suffixes: set[str], pattern: re.Pattern[str], what: str) -> list[str]:
    said = []
    for path in docs.files(root):
        place = str(path.relative_to(root))
        if path.suffix not in suffixes or place.startswith(_COPIED_TEXTS):
            continue
        if place in {
            "tests/rules/sources.py",
            "tests/test_tidy.py",
        }:  # they name what they look for
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                said.append(f"{place}:{number}: {what}")
    return said
