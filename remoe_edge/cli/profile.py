"""`remoe-edge profile`: fit the eviction policy to a model's traces."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(name="profile")
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The profile to write."
)
@click.option("--links/--no-links", default=True, help="Fit links, or weights only (2 KB).")
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(1, 100))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    traces: tuple[Path, ...], output: Path, links: bool, epochs: int, as_json: bool
) -> None:
    """Fit the reuse-biased policy to TRACES (recorded, or .npz) of one model.

    Give traces of different kinds of text: each is judged by what the others taught.
    """
    import json
    import os

    # The products are small: a second thread spends more on waiting than it saves. Set before numpy
    # comes in, and left alone where somebody chose otherwise.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from remoe_edge.profile import fit_profile, save_profile
    from remoe_edge.routing.trace import read_trace

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{text}", nl=False, err=True)

    fitted = fit_profile(
        [read_trace(path) for path in traces], links=links, epochs=epochs, progress=progress
    )
    progress("")
    save_profile(fitted.data, output)
    if as_json:
        report = {
            "profile": str(output),
            "bytes": len(fitted.data),
            "judged": fitted.gap_shares,
            "searched": fitted.searched,
        }
        click.echo(json.dumps(report, indent=1))
        return
    for row in fitted.gap_shares:
        click.echo(
            f"{row['cache_share']:>4.0%} of experts: {row['gap_share']:6.1%} of the LRU→Belady gap"
            f" on the last part of {Path(row['trace']).name}, with links of the others"
        )
    click.echo(f"{output}: {len(fitted.data) / 2**20:.2f} MiB")
