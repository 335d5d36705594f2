"""The record of a bench: one JSON object in a file of its own."""

from __future__ import annotations

import json
import sys
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
    if fault := _fault(record):
        raise InputError(f"{path} is a damaged record: {fault}")
    return record


_PARTS = {
    "command": str, "ended": str, "complete": bool, "model": dict, "machine": dict, "software": dict,
    "settings": dict, "storage": dict, "arms": dict, "summary": dict, "prompts": list, "runs": list,
}  # fmt: skip
_NAMED = ("read_ahead", "page_cache", "box", "differs")


def _fault(record: dict[str, Any]) -> str:
    """Say what of a record is missing, or of another kind than everybody expects; "" where nothing is."""
    for name, kind in _PARTS.items():
        if not isinstance(record.get(name), kind):
            return f"its {name} is not there, or of another kind"
    for name in _NAMED:
        if name not in record:
            return f"its {name} is not there"
    differs, probe = record["differs"], record["storage"].get("probe", "missing")
    held = {
        "model": isinstance(record["model"].get("file"), str),
        "differs": differs is None or (isinstance(differs, dict) and "line" in differs),
        "storage": probe is None or (isinstance(probe, dict) and _is_pick(probe.get("pick"))),
        "runs": all(isinstance(run, dict) and "marks" in run for run in record["runs"]),
    }
    wrong = [name for name, is_right in held.items() if not is_right]
    return f"its {wrong[0]} cannot be read" if wrong else ""


def _is_pick(pick: object) -> bool:
    return not pick or (isinstance(pick, dict) and is_number(pick.get("mib_per_s")))


def is_number(value: object) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, int | float) and abs(value) < sys.float_info.max
