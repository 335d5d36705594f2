"""Print what was measured as one table, with what has to hold beside it, and write it as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remoe_edge.cli.results import write_json
from remoe_edge.machine.description import describe


def held(value: float | None, bound: str) -> bool | None:
    """Say whether a value keeps a bound, `<= 1.03` or `>= 0.8`; None where there is none of either."""
    if value is None or not bound:
        return None
    sign, _, number = bound.partition(" ")
    return value <= float(number) if sign == "<=" else value >= float(number)


def row(what: str, value: float | None, unit: str = "", bound: str = "") -> dict[str, Any]:
    """Make a line of a table whose lines are single values."""
    value = None if value is None else round(value, 4)
    return {"what": what, "value": value, "unit": unit, "bound": bound, "held": held(value, bound)}


def tell(
    asked: argparse.Namespace, rows: Sequence[dict[str, Any]], output: Path | None, **more: Any
) -> bool:
    """Print rows that have the same keys, and write them; return whether all bounds were kept."""
    names = list(rows[0])
    cells = [names, *([_cell(each[name]) for name in names] for each in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    if output is not None:
        settings = {name: str(value) for name, value in vars(asked).items()}
        record = {"settings": settings, "machine": describe(), "rows": list(rows), **more}
        write_json(record, output)
    return all(each.get("held") is not False for each in rows)


def _cell(value: Any) -> str:
    names = {None: "", True: "yes", False: "NO"}
    return names[value] if value is None or isinstance(value, bool) else str(value)
