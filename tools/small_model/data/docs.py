"""Technical documentation, one document per page or source file."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .document import Document
from .plain_text import from_html, from_pod, from_rst

# package -> (glob below its unpacked folder, what turns a file into text)
_PAGES: dict[str, tuple[tuple[str, Callable[[str], str]], ...]] = {
    "linux-doc-6.1": (
        ("**/Documentation/**/*.rst.gz", from_rst),
        ("**/Documentation/**/*.rst", from_rst),
    ),
    "python3.11-doc": (("**/_sources/**/*.txt", from_rst),),
    "postgresql-doc-15": (("**/html/*.html", from_html),),
    "sqlite3-doc": (("**/*.html", from_html),),
    "perl-doc": (("**/*.pod", from_pod),),
    "rust-doc": tuple(
        (f"**/html/{book}/**/*.html", from_html)
        for book in (
            "book",
            "reference",
            "rust-by-example",
            "nomicon",
            "cargo",
            "edition-guide",
            "embedded-book",
            "rustc",
            "rustdoc",
            "unstable-book",
        )
    ),
    "git-doc": (("**/*.txt", from_rst),),
    "libreoffice-help-en-us": (("**/text/**/*.html", from_html),),
    "debian-handbook": (("**/html/en-US/*.html", from_html),),
    "debian-reference-en": (("**/*.en.html", from_html),),
    "gimp-help-en": (("**/help/en/*.html", from_html),),
}
_SKIP = re.compile(
    r"/(translations|userspace-api/media|print|genindex|index-|changelog|release-|toc\.html"
    r"|ChangeLog|rfcs?/|RelNotes|whatsnew|hgweb|all\.html|doclist|keyword_index|sitemap|book/print)",
)
_PER_PACKAGE_BYTES = 14_000_000


def read(folders: dict[str, Path]) -> Iterator[Document]:
    """Yield the pages of every documentation package in `folders`, each page once."""
    for package, sources in _PAGES.items():
        if package not in folders:
            continue
        total = 0
        for pattern, convert in sources:
            for path in sorted(folders[package].glob(pattern)):
                relative = path.relative_to(folders[package]).as_posix()
                if _SKIP.search("/" + relative) or not path.is_file():
                    continue
                raw = (
                    gzip.decompress(path.read_bytes())
                    if path.suffix == ".gz"
                    else path.read_bytes()
                )
                text = convert(raw.decode("utf-8", "replace"))
                if 400 <= len(text) <= 400_000 and _readable(text):
                    total += len(text)
                    if total > _PER_PACKAGE_BYTES:
                        break
                    yield Document(f"{package}:{relative}", package, text)


def _readable(text: str) -> bool:
    """Refuse tables, indexes and listings: few words per line, or few letters."""
    letters = sum(c.isalpha() or c == " " for c in text[:20_000]) / min(len(text), 20_000)
    return letters > 0.72
