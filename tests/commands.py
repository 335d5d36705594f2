"""Every command of `remoe-edge`, as click knows it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from remoe_edge.cli import cli


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, by its name: `chat`, `convert merge`."""
    with click.Context(cli, info_name="remoe-edge") as context:
        yield from _below(cli, context, ())


def _below(
    group: click.Group, context: click.Context, names: tuple[str, ...]
) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from _below(command, context, (*names, name))
        else:
            yield " ".join((*names, name)), command
