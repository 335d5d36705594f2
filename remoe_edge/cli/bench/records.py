"""`remoe-edge bench compare` and `bench again`: records against each other, and runs made anew."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import click

from remoe_edge.cli import options
from remoe_edge.cli.bench.run import run
from remoe_edge.cli.bench.shown import show_comparison
from remoe_edge.cli.old_spellings import Old, option
from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import say
from remoe_edge.errors import InputError
from remoe_edge.names import named_twice


@click.command()
@click.argument("a", type=options.FILE)
@click.argument("b", type=options.FILE)
@options.json_flag()
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare record B with record A, arm by arm.

    Records of different models are refused. Other differences in how they were made are listed.
    """
    from remoe_edge.bench import record
    from remoe_edge.bench.compare import compare as compare_records

    found = compare_records(record.read(a), record.read(b), str(a), str(b))
    if as_json:
        print_json(found)
    else:
        show_comparison(found)


@click.command()
@click.argument("records", nargs=-1, required=True, type=options.FILE)
@option(
    "--models",
    multiple=True,
    required=True,
    type=options.FOLDER,
    metavar="FOLDER",
    help="Look in this folder for the models and texts that the records name; may be repeated.",
)
@options.output_folder("It gets the new records, under the old names.", old=[Old("--out")])
@click.pass_context
def again(
    context: click.Context,
    /,
    records: tuple[Path, ...],
    models: tuple[Path, ...],
    output: Path | None,
) -> None:
    """Run the commands of RECORDS again on this machine, and compare each with its record."""
    import tempfile

    from remoe_edge.bench import record
    from remoe_edge.bench.again import arguments
    from remoe_edge.bench.compare import compare as compare_records
    from remoe_edge.files.atomic import check_output

    twice = named_twice(path.name for path in records)
    if twice is not None and output is not None:
        raise InputError(f"two records are named {twice}, and {output} takes one of that name")
    old = {path: record.read(path) for path in records}
    lines = {path: arguments(each, path, models) for path, each in old.items()}
    with contextlib.ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for path in records:  # each is found out now, and not after the hours of those before it
            check_output(folder / path.name, [])
        for path, line in lines.items():
            say(f"{path.name}: remoe-edge bench {shlex.join(line)}")
            new = folder / path.name
            context.meta["arguments"] = line
            with run.make_context("run", [*line, "-o", str(new)], parent=context) as inner:
                run.invoke(inner)
            show_comparison(compare_records(old[path], record.read(new), "the record", "now"))
