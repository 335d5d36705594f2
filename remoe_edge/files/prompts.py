"""Read prompts of the user's own from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.files.reading import numbered_lines, read_text

_BETWEEN = re.compile(r"^---$", re.MULTILINE)


def read_prompts(path: str | Path) -> list[str]:
    """Read a file of prompts.

    `.jsonl`: an object with "prompt" a line; anything else: texts with a line `---` between them.
    Raises InputError naming the line.
    """
    path = Path(path)
    text = read_text(path, "prompts")
    prompts = _json_lines(text, path) if path.suffix == ".jsonl" else _texts(text)
    if not prompts:
        raise InputError(f"{path} holds no prompt")
    return prompts


def _texts(text: str) -> list[str]:
    parts = _BETWEEN.split(text.replace("\r\n", "\n"))
    return [part.strip("\n") for part in parts if part.strip()]


def _json_lines(text: str, path: Path) -> list[str]:
    prompts = []
    for number, line in numbered_lines(text):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f'{path}, line {number}: no JSON object with "prompt"') from error
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f'{path}, line {number}: "prompt" is no text')
        prompts.append(prompt)
    return prompts
