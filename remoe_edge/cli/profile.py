"""`remoe-edge profile`: fit the eviction policy to a model's traces."""

from __future__ import annotations

from pathlib import Path

import click

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import show_progress


@click.command(name="profile")
@click.argument("traces", nargs=-1, required=True, type=options.FILE)
@options.output("It is a profile.", required=True)
@option(
    "--links/--no-links",
    default=True,
    show_default=True,
    help="Also fit which experts follow which; without, a profile takes 2 KB.",
)
@option(
    "--epochs",
    type=click.IntRange(1, 100),
    default=4,
    show_default=True,
    metavar="N",
    help="Passes over the traces.",
)
@options.json_flag()
def command(
    traces: tuple[Path, ...], output: Path, links: bool, epochs: int, as_json: bool
) -> None:
    """Fit the reuse-biased policy to TRACES of one model: recorded ones, or .npz files.

    Give traces of different kinds of text. Each is used to judge what was learned from the others.
    Where the output is a profile of the same model, its hot experts are kept.
    """
    import os

    # The products are small: a second thread spends more on waiting than it saves. Set before numpy
    # comes in, and left alone where somebody chose otherwise.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from remoe_edge.files.atomic import check_output
    from remoe_edge.profile import fit_profile
    from remoe_edge.profile.kept_profile import renew
    from remoe_edge.routing.trace import read_trace

    check_output(output, traces)
    routed = [read_trace(path) for path in traces]
    fitted = fit_profile(routed, links=links, epochs=epochs, progress=show_progress)
    show_progress("")
    data, n_hot = renew(fitted.data, output, (routed[0].n_layers, routed[0].n_experts))
    if as_json:
        report = {
            "profile": str(output),
            "bytes": len(data),
            "hot_experts": n_hot,
            "judged": fitted.gap_shares,
            "searched": fitted.searched,
        }
        print_json(report)
        return
    for row in fitted.gap_shares:
        click.echo(
            f"{row['cache_share']:>4.0%} of experts: {row['gap_share']:6.1%} of the LRU→Belady gap"
            f" on the last part of {Path(row['trace']).name}, with links of the others"
        )
    click.echo(f"{output}: {len(data) / 2**20:.2f} MiB")
    if n_hot:
        click.echo(f"It keeps how much {n_hot} experts were used in past runs.")
