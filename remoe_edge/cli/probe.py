"""`remoe-edge probe`: measure a file's storage, block size against depth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from remoe_edge.machine.storage import StorageProbe


@click.command(name="probe")
@click.argument("path", metavar="FILE", type=click.Path())
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Time for the whole curve.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "io_uring", "pread"]),
    default="auto",
    show_default=True,
    help="How to read.",
)
@click.option("--buffered", is_flag=True, help="Read through the page cache, not with O_DIRECT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: str, seconds: float, backend: str, buffered: bool, as_json: bool) -> None:
    """Measure random reads of FILE and show what the engine would pick.

    Any regular file of 64 KiB or more will do; a large one on the same storage measures best.
    """
    from remoe_edge.machine import storage

    result = storage.probe(path, seconds, backend=backend, direct=not buffered)
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=1))
    else:
        _table(result)


def _table(result: StorageProbe) -> None:
    from rich import box
    from rich.console import Console
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
    # Whole lines, also through a pipe, which has no width.
    Console(width=max(Console().width, 120)).print(table)
    pick, how = result.pick, "O_DIRECT" if result.direct else "buffered"
    click.echo(
        f"{result.backend}, {how}; the engine would keep {pick.depth} reads in flight: "
        f"{pick.mib_per_s:.0f} MiB/s at {pick.block_bytes // 1024} KiB"
    )
