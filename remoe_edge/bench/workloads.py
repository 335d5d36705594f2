"""What the arms are asked: prompts in the style of known workloads, written for this project.

The shipped ones are in `prompts/`, in our own words and free to use; they are *in the style of* the
benchmarks they are named after and hold nothing of them, so speed may be compared and scores not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError

FOLDER = Path(__file__).resolve().parent / "prompts"
NAMES = ("gsm8k", "humaneval", "chat", "docs", "long-prompt")
_BETWEEN = re.compile(r"^---$", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """Hold a text to be continued or answered, and its name in reports."""

    name: str
    text: str


def workload(name: str, limit: int | None = None) -> list[Prompt]:
    """Read a shipped workload, its first `limit` prompts. Raises InputError for another name."""
    if name not in NAMES:
        raise InputError(f"no workload '{name}'; there are {', '.join(NAMES)}")
    return _numbered(name, _split(FOLDER / f"{name}.txt"), limit)


def prompts_file(path: Path, limit: int | None = None) -> list[Prompt]:
    """Read prompts of the user's own.

    `.jsonl`: an object with "prompt" a line; anything else: texts with a line `---` between them.
    Raises InputError.
    """
    try:
        texts = _json_lines(path) if path.suffix == ".jsonl" else _split(path)
    except OSError as error:
        raise InputError(f"cannot read the prompts {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: at offset {error.start}: no UTF-8 text") from error
    return _numbered(path.stem, texts, limit)


def _numbered(name: str, texts: list[str], limit: int | None) -> list[Prompt]:
    texts = texts[:limit]
    if not texts:
        raise InputError(f"'{name}' holds no prompt")
    return [Prompt(f"{name}/{i}", text) for i, text in enumerate(texts, start=1)]


def _split(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    return [each.strip("\n") for each in _BETWEEN.split(text) if each.strip()]


def _json_lines(path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}, line {number}: no JSON object with "prompt"') from error
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f'{path}, line {number}: "prompt" is no text')
        texts.append(prompt)
    return texts
