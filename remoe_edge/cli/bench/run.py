"""`remoe-edge bench`, the run: its options, and what happens when it is ended early."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import gpu_options, options, placement_options, text_option
from remoe_edge.cli.bench import by_mode, meaning
from remoe_edge.cli.bench.shown import progress_line, show_record
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import JsonPathCommand, Old, option
from remoe_edge.cli.results import give
from remoe_edge.cli.terminal import say
from remoe_edge.errors import InputError, RemoeError

if TYPE_CHECKING:
    from remoe_edge.bench.arms import Arm
    from remoe_edge.bench.process import Question
    from remoe_edge.bench.settings import Settings


@click.command(
    cls=JsonPathCommand,
    epilog="See also: remoe-edge bench compare --help, remoe-edge bench again --help",
)
@options.model
@option(
    "--arms",
    default=f"stock-mmap,stream:{options.DEFAULT_POLICY}",
    show_default=True,
    metavar="ARM[,...]",
    help="What to measure: stock-mmap, stock-resident or stream:POLICY. Each may end in +repack, "
    "and stream:POLICY also in +NAME=VALUE for any setting of the engine.",
)
@options.cache(
    default="auto",
    several=True,
    more=f"{options.FOLLOWED} It holds for the stream arms; several may be given, as in 10%,25%.",
)
@options.routers(
    several=True, more="They are for the stream arms; several may be given, as in off,default."
)
@options.threads(several=True, more="Several may be given, as in 1,2,4.")
@option(
    "--workload",
    type=options.Several(click.STRING),
    default="chat",
    show_default=True,
    metavar="NAME[,...]",
    help="Kinds of prompts that come with remoe-edge: gsm8k, humaneval, chat, docs, long-prompt.",
)
@options.prompts()
@text_option.text(more="No prompts are answered then.")
@option(
    "--text-prompt",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="How many tokens of --text are its prompt.",
)
@option(
    "--limit",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Take at most this many prompts of each workload.",
)
@options.raw()
@options.max_tokens(
    default=64, more="They are timed, and come after those of --warm.", old=[Old("--tokens")]
)
@options.warm(default=8)
@option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How often each arm runs.",
)
@gpu_options.gpu_layers(
    default="off", more="It holds for all arms; stock keeps its experts off it."
)
@options.peers(more="They are for the stream arms; +peers=off is an arm without.")
@options.keys()
@options.context(more="0 takes what the longest prompt needs.")
@options.ubatch()
@option(
    "--memory-limit",
    metavar="SIZE",
    help="Run every arm in a memory cgroup of this size, which includes the page cache.",
)
@option("--read-bandwidth", metavar="SIZE", help="Let arms read at most this much in a second.")
@option(
    "--read-ahead",
    default="128",
    show_default=True,
    metavar="KIB|keep",
    help="The disk's read-ahead in KiB, for all arms; keep leaves it as it is.",
)
@option(
    "--probe-seconds",
    type=Number(min=0),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Time for measuring the storage; 0 leaves it out.",
)
@placement_options.price()
@option(
    "--power",
    is_flag=True,
    help="Run all of it at each power mode of the board (nvpmodel, as root), and show tokens per joule.",
)
@options.output("It is the record of all runs, as JSON, and is written after each of them.")
@options.json_flag("It is the record of all runs.")
@option("--csv", type=options.OutputFile(), metavar="FILE", help="Write a row for each token.")
@option("--html", type=options.OutputFile(), metavar="FILE", help="Write a page with plots.")
@click.pass_context
def run(
    context: click.Context,
    /,
    model: Path,
    price: str | None,
    output: Path | None,
    as_json: bool,
    csv: Path | None,
    html: Path | None,
    power: bool,
    **asked: Any,
) -> None:
    """Run each arm on MODEL in turn, each in a process (and box) of its own, and report.

    All arms get the same tokens. Arms that promise the same bits must choose the same tokens; if they
    do not, the run fails and says where.
    """
    from remoe_edge.bench import record as records
    from remoe_edge.bench.arms import without_folders
    from remoe_edge.files.atomic import check_output, write_text
    from remoe_edge.files.own_gguf import open_model

    if not model.is_file():
        raise InputError(f"no model at {model}")
    if power:
        by_mode.check(csv, html)
    for path in (output, csv, html):
        if path is not None:
            check_output(path, [model])
    open_model(model)
    table = None
    if price is not None:
        from remoe_edge.placement.price import load as load_prices

        table = load_prices(price)
    asked["gpu_layers"] = meaning.gpu_layers(model, asked)
    settings = meaning.settings(asked)
    arms = meaning.arms(model, asked)
    questions = meaning.questions(model, asked, settings)
    words = ["remoe-edge", "bench", *map(without_folders, context.meta["arguments"])]
    if power:
        by_mode.run_by_mode(
            lambda: _measure(model, arms, questions, settings, shlex.join(words), None),
            output,
            as_json,
        )
        return
    record, whole = _measure(model, arms, questions, settings, shlex.join(words), output)
    if table is not None:
        from remoe_edge.bench.cost import add_costs

        add_costs(record, table)
    try:
        if csv is not None:
            from remoe_edge.bench.tokens_csv import tokens_csv

            write_text(tokens_csv(record), csv)
        if html is not None:
            from remoe_edge.bench.page import page

            write_text(page(record), html)
    finally:
        give(record, output, as_json=as_json, show=lambda: show_record(record), write=records.write)
    if not whole:
        context.exit(130)
    if record["differs"]:
        raise RemoeError(f"tokens differ: {record['differs']['line']}")
    if record["failed"]:
        raise RemoeError("; ".join(record["failed"].values()))


def _measure(
    path: Path,
    arms: list[Arm],
    questions: list[Question],
    settings: Settings,
    line: str,
    output: Path | None,
) -> tuple[dict[str, Any], bool]:
    """Run the session; return its record, and whether it was left to end."""
    from remoe_edge.bench import record
    from remoe_edge.bench.session import Session

    refused: list[str] = []

    def saved(so_far: dict[str, Any]) -> None:
        if output is None or refused:
            return
        try:
            record.write(so_far, output)
        except RemoeError as error:  # said now, and again at the end, where it counts
            refused.append(str(error))
            say(str(error))

    with _ending_once(), progress_line() as progress:
        session = Session(
            path, arms, questions, settings, line, say=say, progress=progress, saved=saved
        )
        try:
            return session.run(), True
        except KeyboardInterrupt:
            if not session.record:
                raise
            return session.record, False


@contextlib.contextmanager
def _ending_once() -> Iterator[None]:
    """Let Ctrl-C or a polite kill end a bench, and a second one not end what cleans up after it."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in previous:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
