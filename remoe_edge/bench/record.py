"""The record of a bench: one JSON object in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import write_text
from remoe_edge.files.reading import read_whole

FORMAT = "remoe-edge bench"
VERSION = 1


def write(record: dict[str, Any], path: Path) -> None:
    """Write a record, whole or not at all. Raises ReadError, which names the path."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_text(text + "\n", path)


def read(path: Path) -> dict[str, Any]:
    """Read a record. Raises InputError for anything else."""
    try:
        record = json.loads(read_whole(path, "record"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no record of `remoe-edge bench`: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path} is no record of `remoe-edge bench`")
    if record.get("version") != VERSION:
        raise InputError(
            f"{path} is a record of version {record.get('version')}; this reads version {VERSION}"
        )
    return record
