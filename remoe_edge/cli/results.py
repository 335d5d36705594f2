"""Results as JSON: on stdout, or in a file that is there whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def give(
    result: Any,
    path: Path | None,
    *,
    as_json: bool,
    show: Callable[[], None],
    write: Callable[[Any, Path], None] | None = None,
) -> None:
    """Write a result into its file, if there is one, and show it: neither hangs on the other.

    What reads stdout may be gone, or the disk full, and what was measured would be gone too.
    """
    try:
        if path is not None:
            (write or write_json)(result, path)
    finally:
        if as_json:
            print_json(result)
        else:
            show()


def print_json(result: Any) -> None:
    """Print one object on stdout."""
    click.echo(_as_text(result))


def write_json(result: Any, path: Path) -> None:
    """Write one object into a file. Raises ReadError, which names the path."""
    from remoe_edge.files.atomic import write_text

    write_text(_as_text(result) + "\n", path)


def _as_text(result: Any) -> str:
    return json.dumps(_plain(result), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Write null for what is no number: JSON has no NaN, and readers refuse it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
