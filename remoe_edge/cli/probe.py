"""`remoe-edge probe`: measure a file's storage, block size against depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from remoe_edge.cli import options
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import Old, option
from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import print_tables

if TYPE_CHECKING:
    from remoe_edge.machine.storage import StorageProbe


@click.command(name="probe")
@click.argument("path", metavar="[FILE]", type=options.PATH, required=False)
@option(
    "--seconds",
    type=Number(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Time for the whole measurement.",
)
@options.io(old=[Old("--backend")])
@options.direct(old=[Old("--buffered", means=False)])
@options.json_flag()
def command(
    path: Path | None, seconds: float, io: str, direct: bool, as_json: bool
) -> None:  # fmt: skip
    """Measure random reads of FILE, and show how the engine would read it.

    Any file of 64 KiB or more will do; a large one measures best. Without FILE it reads the model
    that comes with remoe-edge.
    """
    from remoe_edge.files.models import shipped_model
    from remoe_edge.machine import storage

    file = path or shipped_model()
    result = storage.probe(file, seconds, backend=io, direct=direct)
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        print_json(result.as_json())
    else:
        _table(result)
        _meaning(file, result)


def _table(result: StorageProbe) -> None:
    from rich import box
    from rich.table import Table

    depths = sorted({point.depth for point in result.points})
    cells = {
        (point.block_bytes, point.depth): f"{point.mib_per_s:.0f} ({point.iops:.0f})"
        for point in result.points
    }
    table = Table(box=box.SIMPLE, title="random reads: MiB/s (reads/s)", title_justify="left")
    table.add_column("block", no_wrap=True)
    for depth in depths:
        table.add_column(f"depth {depth}", justify="right", no_wrap=True)
    for block_bytes in sorted({point.block_bytes for point in result.points}):
        row = (cells.get((block_bytes, depth), "-") for depth in depths)
        table.add_row(f"{block_bytes // 1024} KiB", *row)
    print_tables(table, width=120, least_width=120)
    pick, how = result.pick, "O_DIRECT" if result.direct else "buffered"
    click.echo(
        f"{result.backend}, {how}; the engine would keep {pick.depth} reads in flight: "
        f"{pick.mib_per_s:.0f} MiB/s at {pick.block_bytes // 1024} KiB"
    )


def _meaning(file: Path, result: StorageProbe) -> None:
    """Say what kind of storage it is, what a token's reads take on it, and how the clocks were set."""
    from remoe_edge.machine.block_device import SLOW, kind_of
    from remoe_edge.machine.disk import disk_of
    from remoe_edge.machine.power_mode import power_mode
    from remoe_edge.plan.reading_time import line, reading_times

    disk = disk_of(file)
    if disk is not None:
        kind = kind_of(disk.name)
        slow = (
            ": for a model that does not fit in memory, take an NVMe drive" if kind in SLOW else ""
        )
        click.echo(f"{disk.name}, {kind}{slow}")
    if times := reading_times(file, result.pick.mib_per_s * 2**20):
        click.echo(line(times))
    if clocks := power_mode().line():
        click.echo(clocks)
