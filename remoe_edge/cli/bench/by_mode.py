"""`remoe-edge bench --power`: the bench at each power mode, and one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import escape, print_tables, say
from remoe_edge.errors import InputError


def check(csv: Path | None, html: Path | None) -> None:
    """Refuse what one record would be needed for, and a board without modes. Raises RemoeError."""
    from remoe_edge.bench.power_modes import Board

    if csv is not None or html is not None:
        raise InputError("--power makes a record for each mode: --csv and --html take one record")
    Board().check()


def run_by_mode(
    measure: Callable[[], tuple[dict[str, Any], bool]], output: Path | None, as_json: bool
) -> None:
    """Measure at each mode; print the table, or the whole as JSON."""
    from remoe_edge.bench import record as records
    from remoe_edge.bench.power_modes import Board, at_each_mode

    def once() -> dict[str, Any]:
        record, whole = measure()
        if not whole:
            raise KeyboardInterrupt
        return record

    def saved(so_far: dict[str, Any]) -> None:
        if output is not None:
            records.write(so_far, output)

    found = at_each_mode(Board(), once, say, saved)
    if as_json:
        print_json(found.as_json())
        return
    print_tables(found.table(), width=120)
    for name, why in found.left_out.items():
        click.echo(escape(f"left out: {name}: {why}"))
