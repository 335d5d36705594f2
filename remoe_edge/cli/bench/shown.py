"""What a bench shows: where it is on stderr, tables on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from remoe_edge.cli.terminal import escape, print_tables, say


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str, int, str, int], None]]:
    """Give a callback that shows where a bench is on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda arm, number, prompt, n_tokens: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("starting") as status:
        yield lambda arm, number, prompt, n_tokens: status.update(
            Text(escape(f"round {number}, {arm}: {prompt or 'loading'} {n_tokens or ''}"))
        )


def show_record(record: dict[str, Any]) -> None:
    """Print the tables of a record, and what to mind when reading them."""
    from remoe_edge.bench.table import disturbances, remarks, tables

    print_tables(*tables(record), width=240)
    for line in remarks(record) + disturbances(record):
        click.echo(escape(line))


def show_comparison(found: dict[str, Any]) -> None:
    """Print a comparison, what is not alike first."""
    from remoe_edge.bench.compare import table

    for line in found["differences"]:
        say(f"note: {line}")
    print_tables(table(found), width=140)
