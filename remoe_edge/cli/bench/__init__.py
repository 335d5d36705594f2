"""`remoe-edge bench`: measure a model on this machine against stock llama.cpp."""

from __future__ import annotations

import re

import click

from remoe_edge.cli.bench.records import again, compare
from remoe_edge.cli.bench.run import run

_JOINED = re.compile(r"(-[a-z])(.+)")


class WithDefault(click.Group):
    """Take what names no subcommand as arguments of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words for the record, which says how it was made."""
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        ctx.meta["arguments"] = [part for word in args[1:] for part in _apart(word)]
        return super().parse_args(ctx, args)


def _apart(word: str) -> tuple[str, ...]:
    """Write `-o FILE` for `-oFILE`, so that a record's reader finds the file."""
    joined = _JOINED.fullmatch(word)
    return joined.groups() if joined else (word,)


@click.group(cls=WithDefault)
def command() -> None:
    """Measure a model on this machine against stock llama.cpp, and compare such records."""


for _each in (run, compare, again):
    command.add_command(_each)
