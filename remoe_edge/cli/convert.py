"""`remoe-edge convert`: tuned-router overlays, models without experts, and coarser experts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from remoe_edge.cli import options
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.options import FILE, FOLDER
from remoe_edge.cli.terminal import escape


@click.group()
def command() -> None:
    """Make, merge and extract tuned-router overlays; leave experts out, or make coarser ones."""
    # A polite kill unwinds like Ctrl-C, so that it leaves no half-written file either.
    signal.signal(signal.SIGTERM, _terminate)


@command.command()
@click.argument("tuned", type=FILE)
@options.base(required=True)
@options.output("An overlay of the base model.", required=True)
@option(
    "--strength",
    type=Number(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="How far to go from the base's routers to the tuned ones. Below 1 costs less quality "
    "and gains less reuse.",
)
def routers(tuned: Path, base: Path, output: Path, strength: float) -> None:
    """Turn tuned routers (safetensors) into an overlay for BASE."""
    from remoe_edge.convert.routers import convert_routers

    convert_routers(tuned, base, output, strength)
    click.echo(output)


@command.command()
@click.argument("base", type=FILE)
@click.argument("overlay", type=FILE)
@options.output("A GGUF, whole.", required=True)
def merge(base: Path, overlay: Path, output: Path) -> None:
    """Write BASE with the overlay's routers: a full GGUF for llama.cpp, Ollama and others."""
    from remoe_edge.convert.merge import merge as merge_files

    with _progress() as report:
        written = merge_files(base, overlay, output, report)
    for path in written:
        click.echo(path)


@command.command()
@click.argument("tuned", type=FILE)
@options.output("An overlay of the base model.", required=True)
@options.base(required=False)
@option(
    "--rebase",
    is_flag=True,
    help="Accept a --base that is another quantisation of the model, and fit the overlay to it.",
)
def extract(tuned: Path, output: Path, base: Path | None, rebase: bool) -> None:
    """Take the routers out of a tuned GGUF, as an overlay for its base."""
    from remoe_edge.convert.extract import extract as extract_routers

    extract_routers(tuned, output, base, rebase)
    click.echo(output)


@command.command()
@options.model
@options.output("A GGUF with holes in the experts' place.", required=True)
def dense(model: Path, output: Path) -> None:
    """Leave out MODEL's experts, for a machine whose experts are all with workers (--peers)."""
    from remoe_edge.convert.dense import write_dense

    with _progress() as report:
        write_dense(model, output, report)
    click.echo(output)


@command.command()
@options.model
@option(
    "--type",
    "type_name",
    default="Q4_K",
    show_default=True,
    metavar="TYPE",
    help="What experts become: Q2_K, Q3_K, IQ4_NL and others that need no importance matrix.",
)
@options.output("A GGUF with the experts alone. MODEL.coarse.gguf is found without being named.",
                required=True)  # fmt: skip
def coarse(model: Path, type_name: str, output: Path) -> None:
    """Write MODEL's experts once more in a coarser type, for --coarse-below."""
    from remoe_edge.convert.coarse import write_coarse

    with _progress() as report:
        write_coarse(model, type_name, output, report)
    click.echo(output)


@command.command("export-hf")
@click.argument("folder", type=FOLDER)
@click.argument("tuned", type=FILE)
@options.output_folder("It must not exist yet.", required=True)
def export_hf(folder: Path, tuned: Path, output: Path) -> None:
    """Write a Hugging Face FOLDER again with tuned routers, for transformers and vLLM."""
    from remoe_edge.convert.export_hf import export_hf as export

    with _progress() as report:
        left_out = export(folder, tuned, output, report)
    if left_out:
        names = escape(", ".join(left_out))
        click.echo(f"left out, as the model does not use it: {names}", err=True)
    click.echo(output)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws bytes done against bytes in all, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("copy", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
