"""A hook of mkdocs: links from docs/ to files outside it, which a site does not contain.

On GitHub they are relative links and work. On the site they lead to the same file in the repository
where `repo_url` in mkdocs.yml names one; otherwise the path stands behind the text. A link to a
file that does not exist is left alone, so that `mkdocs build --strict` fails for it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of one page before it is rendered."""
    docs = Path(config["docs_dir"])
    folder = docs / Path(page.file.src_uri).parent
    repository = (config.get("repo_url") or "").rstrip("/")

    def rewritten(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(docs) or not path.exists():
            return match[0]
        place = path.relative_to(docs.parent).as_posix()
        if repository:
            return f"[{text}]({repository}/blob/main/{place}{anchor})"
        return f"`{place}`" if place in text else f"{text} (`{place}`)"

    return _LINK.sub(rewritten, markdown)
