"""`remoe-edge keys`: make what engines and workers prove themselves with."""

from __future__ import annotations

from pathlib import Path

import click

from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.terminal import say


@click.command(name="keys")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@option(
    "--days",
    type=click.IntRange(min=0),
    default=3650,
    show_default=True,
    metavar="N",
    help="How long both are accepted.",
)
def command(folder: Path, days: int) -> None:
    """Write keys for engines and workers on other machines into FOLDER.

    worker.pem is for `remoe-edge worker --keys`, client.pem for `--keys` of commands that name --peers.
    authority.key signs new ones for the same machines when the command is run again: keep it. Whoever
    has one of these files is believed.
    """
    from remoe_edge.remote.keys import make_keys

    for path in make_keys(folder, days=days):
        click.echo(path)
    say("keep authority.key here; copy worker.pem to the workers, client.pem to the engines")
