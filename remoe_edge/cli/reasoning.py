"""Show a model's reasoning apart from its answer: dimmed, and only to somebody who watches.

It goes to stderr where that is a terminal. Where it is none, reasoning is not shown; `--json` has it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click

from remoe_edge.cli.terminal import escape


class ShownReasoning:
    """Write pieces of reasoning to stderr as they come; `before` an answer ends their line."""

    def __init__(self) -> None:
        self._open = False

    def __call__(self, text: str) -> None:
        """Show a piece."""
        if sys.stderr.isatty():
            self._open = True
            click.secho(escape(text), dim=True, nl=False, err=True)

    def before(self, pieces: Iterable[str]) -> Iterator[str]:
        """Pass an answer's pieces on, each after whatever reasoning is done."""
        try:
            for piece in pieces:
                self._end()
                yield piece
        finally:
            self._end()

    def _end(self) -> None:
        if self._open:
            self._open = False
            click.echo("\n", err=True)
