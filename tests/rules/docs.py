"""The pages: where links lead, which pages nothing links to, how long lines and sentences are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

LONGEST_LINE = 120
MOST_WORDS_A_SENTENCE = 20
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.M | re.S)
_LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_OUTSIDE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.I)
_RECORDS = ("docs/experiments/", "docs/design-decisions.md")
_GENERATED = ("models/samples.md",)


def files(root: Path) -> list[Path]:
    """List the files that belong to the project: tracked, or new and not ignored."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return _unignored(root)
    if done.returncode:  # not a checkout: an unpacked archive, or a made-up tree
        return _unignored(root)
    listed = sorted({name for name in done.stdout.split("\0") if name})
    return [path for path in (root / name for name in listed) if path.is_file()]


def _unignored(root: Path) -> list[Path]:
    """List all files outside the folders that .gitignore names."""
    ignore = root / ".gitignore"
    lines = ignore.read_text().split() if ignore.is_file() else []
    folders = {".git"} | {line.strip("/") for line in lines if line.endswith("/")}
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".so")
    return [path for path in found if folders.isdisjoint(path.relative_to(root).parts)]


def pages(root: Path) -> list[Path]:
    """List the Markdown pages, but for those that a program writes."""
    found = [path for path in files(root) if path.suffix == ".md"]
    return [path for path in found if not str(path.relative_to(root)).startswith(_GENERATED)]


def without_code(text: str) -> str:
    """Blank out fenced and indented code and inline code, keeping line ends."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = re.sub(r"(?m)(?<=\n\n)(?:(?: {4}|\t)(?![-*\d]).*\n?)+", "\n", text)
    return re.sub(r"(`+)(?:(?!\1).)+?\1", "code", text, flags=re.S)


def anchors(text: str) -> set[str]:
    """Make the anchors of a page's headings, as GitHub and mkdocs do for plain ASCII headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", _FENCE.sub("", text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return set(found)


def broken_links(root: Path) -> list[str]:
    """Report relative links to what is not there, and to headings that a page does not have."""
    said = []
    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        for target in _LINK.findall(without_code(text)):
            if _OUTSIDE.match(target):
                continue
            name, _, anchor = target.partition("#")
            linked = path.parent / name if name else path
            where = f"{path.relative_to(root)}: {target}"
            if name.startswith("/") or not linked.exists():
                said.append(f"{where} leads nowhere")
                continue
            if anchor and linked.suffix == ".md":
                known = anchors(linked.read_text(encoding="utf-8"))
                said += [] if anchor in known else [f"{where}: no such heading"]
    return said


def orphans(root: Path) -> list[str]:
    """Report pages of docs/ that no other page links to."""
    linked = set()
    for path in pages(root):
        for target in _LINK.findall(without_code(path.read_text(encoding="utf-8"))):
            name = target.partition("#")[0]
            if name and not _OUTSIDE.match(target) and (path.parent / name).exists():
                linked_path = (path.parent / name).resolve()
                if linked_path != path.resolve():
                    linked.add(linked_path)
    below = [path for path in pages(root) if path.is_relative_to(root / "docs")]
    below = [path for path in below if path != root / "docs/index.md"]  # the site's own front
    return [str(path.relative_to(root)) for path in below if path.resolve() not in linked]


def long_lines(root: Path) -> dict[str, int]:
    """Count each page's lines of more than 120 characters; tables, code and bare links are exempt."""
    found = {}
    for path in pages(root):
        text = _FENCE.sub("", path.read_text(encoding="utf-8"))
        lines = [line for line in text.splitlines() if len(line) > LONGEST_LINE]
        lines = [line for line in lines if not line.startswith("|")]
        lines = [line for line in lines if max(map(len, line.split())) <= LONGEST_LINE]
        if lines:
            found[str(path.relative_to(root))] = len(lines)
    return found


def words_a_sentence(text: str) -> float:
    """Average the words of a page's sentences. Headings, tables and code are none."""
    text = without_code(text)
    text = re.sub(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    counts = []
    for block in _blocks(text):
        for sentence in re.split(r"(?<=[.!?])[*_)\"]*\s+(?=[\"(*_]*[A-Z0-9(])", block):
            n_words = len(re.findall(r"[^\s]*\w[^\s]*", sentence))
            if n_words > 2:
                counts.append(n_words)
    return sum(counts) / len(counts) if counts else 0.0


def long_winded(root: Path) -> dict[str, float]:
    """Average the sentences of the pages for users; name those above the bound."""
    found = {}
    for path in pages(root):
        place = str(path.relative_to(root))
        for_users = place == "README.md" or place.startswith("docs/")
        if for_users and not place.startswith(_RECORDS):
            average = words_a_sentence(path.read_text(encoding="utf-8"))
            if average > MOST_WORDS_A_SENTENCE:
                found[place] = round(average, 1)
    return found


def _blocks(text: str) -> list[str]:
    """Part a page into paragraphs and list items."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "|", "<")):
            blocks.append([])
            continue
        if re.match(r"([-*+]|\d+\.)\s", stripped):
            blocks.append([])
            stripped = re.sub(r"^([-*+]|\d+\.)\s+", "", stripped)
        blocks[-1].append(stripped)
    return [" ".join(block) for block in blocks if block]
