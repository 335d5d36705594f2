"""What the arms are asked: prompts in the style of known workloads, written for this project.

The shipped ones are in `prompts/`, in our own words and free to use; they are *in the style of* the
benchmarks they are named after and hold nothing of them, so speed may be compared and scores not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.files.prompts import read_prompts

FOLDER = Path(__file__).resolve().parent / "prompts"
NAMES = ("gsm8k", "humaneval", "chat", "docs", "long-prompt")


@dataclass(frozen=True)
class Prompt:
    """Hold a text to be continued or answered, and its name in reports."""

    name: str
    text: str


def workload(name: str, limit: int | None = None) -> list[Prompt]:
    """Read a shipped workload, its first `limit` prompts. Raises InputError for another name."""
    if name not in NAMES:
        raise InputError(f"no workload '{name}'; there are {', '.join(NAMES)}")
    return _numbered(name, read_prompts(FOLDER / f"{name}.txt"), limit)


def prompts_file(path: Path, limit: int | None = None) -> list[Prompt]:
    """Read prompts of the user's own, as `remoe_edge.prompts` does. Raises InputError."""
    return _numbered(path.stem, read_prompts(path), limit)


def _numbered(name: str, texts: list[str], limit: int | None) -> list[Prompt]:
    return [Prompt(f"{name}/{i}", text) for i, text in enumerate(texts[:limit], start=1)]
