"""Measured points of T(y) as a file: what a kind of machine takes for a row, by a function's memory.

`tools/remote_experiments/expert_latency.py` measures them; `plan --function-times` and `deploy
--function-times` plan with them instead of taking functions to be like this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import write_text
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.placement.latency_curve import Points

VERSION = 1


def as_dict(points: Points) -> dict[str, Any]:
    """Write points as plain values: bytes, milliseconds a row."""
    return {
        "version": VERSION,
        "kind": points.kind,
        "sizes_bytes": list(points.sizes),
        "row_ms": list(points.row_ms),
    }


def save(points: Points, path: Path) -> None:
    """Write a file that `load` reads, whole or not at all. Raises ReadError, which names the path."""
    write_text(json.dumps(as_dict(points), indent=1) + "\n", path)


def load(path: Path) -> Points:
    """Read points. Raises InputError, which names the file."""
    with open_regular(path, "function times") as file:
        try:
            return _read(json_object(file.read()))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: no function times: {error}") from error


def _read(held: dict[str, Any]) -> Points:
    if type(held.get("version")) is not int or held["version"] != VERSION:
        raise InputError(f"function times of version {held.get('version')!r}, this reads {VERSION}")
    kind, sizes, times = (held.get(name) for name in ("kind", "sizes_bytes", "row_ms"))
    if not isinstance(kind, str) or not kind:
        raise InputError("`kind` names the machine, as a text")
    for name, values in (("sizes_bytes", sizes), ("row_ms", times)):
        whole = isinstance(values, list) and all(_number(each) for each in values)
        if not whole:
            raise InputError(f"`{name}` is a list of numbers above 0")
    assert isinstance(sizes, list)
    assert isinstance(times, list)
    return Points(kind, tuple(int(each) for each in sizes), tuple(float(each) for each in times))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e18
