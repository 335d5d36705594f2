"""`remoe-edge bench`: measure a model on this machine against stock llama.cpp."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli.terminal import escape, say
from remoe_edge.errors import InputError, RemoeError

if TYPE_CHECKING:
    from remoe_edge.bench.arms import Arm
    from remoe_edge.bench.process import Question
    from remoe_edge.bench.settings import Settings

FILE = click.Path(dir_okay=False, path_type=Path)


class WithDefault(click.Group):
    """Take what names no subcommand as arguments of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        ctx.meta["arguments"] = args[1:]
        return super().parse_args(ctx, args)


@click.group(cls=WithDefault)
def command() -> None:
    """Measure a model on this machine against stock llama.cpp; compare two such records."""


@command.command(epilog="See also: remoe-edge bench compare --help, remoe-edge bench again --help")
@click.argument("model", required=False, type=FILE, metavar="[GGUF]")
@click.option(
    "--arms",
    default="stock-mmap,stream:lru",
    show_default=True,
    metavar="LIST",
    help="stock-mmap, stock-resident, stream:POLICY; each with +repack, the last with +NAME=VALUE.",
)
@click.option(
    "--cache",
    default="auto",
    show_default=True,
    metavar="LIST",
    help="Cache sizes of the stream arms: auto, 1500MiB, 30%.",
)
@click.option(
    "--routers",
    default="off",
    show_default=True,
    metavar="LIST",
    help="Routers of the stream arms: off, on (those beside the model), or an overlay.",
)
@click.option(
    "-t", "--threads", metavar="LIST", help="Compute threads; without it, one for each core."
)
@click.option(
    "--workload",
    default="chat",
    show_default=True,
    metavar="LIST",
    help="gsm8k, humaneval, chat, docs, long-prompt: prompts of ours in those styles.",
)
@click.option("--prompts", type=FILE, help="Prompts of your own: .jsonl, or texts between `---`.")
@click.option(
    "--text", type=FILE, help="Read this text token by token, instead of answering prompts."
)
@click.option(
    "--text-prompt",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Tokens of --text that are the prompt.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Prompts of each workload.",
)
@click.option("--raw", is_flag=True, help="Continue the prompts, without the chat template.")
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Timed tokens of each prompt.",
)
@click.option(
    "--warm",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    metavar="N",
    help="Tokens before them that are not timed.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How often each arm runs.",
)
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Tokens of context; 0: what the longest prompt needs.",
)
@click.option(
    "--ubatch",
    "n_ubatch",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of a prompt computed at once, at most.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    help="Run every arm in a memory cgroup of this size, page cache included.",
)
@click.option("--read-bandwidth", metavar="SIZE", help="Cap reads at this many bytes a second.")
@click.option(
    "--read-ahead",
    default="128",
    show_default=True,
    metavar="KIB",
    help="The disk's read-ahead for all arms, or `keep`.",
)
@click.option(
    "--probe-seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Time for the storage probe; 0 leaves it out.",
)
@click.option("--json", "json_path", type=FILE, help="Write the record here, after every run.")
@click.option("--csv", "csv_path", type=FILE, help="Write a row for each token here.")
@click.option("--html", "html_path", type=FILE, help="Write a page with plots here.")
@click.pass_context
def run(
    context: click.Context,
    /,
    model: Path | None,
    **options: Any,
) -> None:
    """Run arms on GGUF in turn, each in a process (and box) of its own, and report.

    Without GGUF: the model that comes along. All arms get the same tokens; arms of the same bits must
    choose the same ones, or the run fails and says where.
    """
    from remoe_edge.bench.arms import without_folders
    from remoe_edge.files.atomic import check_output
    from remoe_edge.files.models import shipped_model

    path = model or shipped_model()
    if not path.is_file():
        raise InputError(f"no model at {path}")
    outputs = [options[name] for name in ("json_path", "csv_path", "html_path")]
    for output in outputs:
        if output is not None:
            check_output(output, [path])
    settings = _settings(options)
    arms = _arms(path, options)
    questions = _questions(path, options, settings)
    words = ["remoe-edge", "bench", *map(without_folders, context.meta["arguments"])]
    record, whole = _measure(
        path, arms, questions, settings, shlex.join(words), options["json_path"]
    )
    _report(record)
    _write(record, *outputs)
    if not whole:
        context.exit(130)
    if record["differs"]:
        raise RemoeError(f"tokens differ: {record['differs']['line']}")
    if record["failed"]:
        raise RemoeError("; ".join(record["failed"].values()))


@command.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Set record B against record A, arm by arm; refuse another model, point out other settings."""
    import json

    from remoe_edge.bench import record
    from remoe_edge.bench.compare import compare as compare_records

    found = compare_records(record.read(a), record.read(b), str(a), str(b))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    _show(found)


@command.command()
@click.argument("records", nargs=-1, required=True, type=FILE)
@click.option(
    "--models",
    multiple=True,
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder with the models and texts, by the names in the records; may be repeated.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the new records in this folder, under the old names.",
)
@click.pass_context
def again(
    context: click.Context,
    /,
    records: tuple[Path, ...],
    models: tuple[Path, ...],
    out: Path | None,
) -> None:
    """Run the commands of RECORDS again on this machine, and set each against its record."""
    import tempfile

    from remoe_edge.bench import record
    from remoe_edge.bench.again import arguments
    from remoe_edge.bench.compare import compare as compare_records

    old = {path: record.read(path) for path in records}
    lines = {path: arguments(each, path, models) for path, each in old.items()}
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for path, line in lines.items():
            say(f"{path.name}: remoe-edge bench {shlex.join(line)}")
            new = folder / path.name
            context.meta["arguments"] = line
            arguments_now = [*line, "--json", str(new)]
            with run.make_context("run", arguments_now, parent=context) as inner:
                run.invoke(inner)
            _show(compare_records(old[path], record.read(new), "the record", "now"))


# --- what the options mean ---


def _list(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _settings(options: dict[str, Any]) -> Settings:
    from remoe_edge.bench.box import Limits
    from remoe_edge.bench.settings import Settings
    from remoe_edge.units import parse_bytes

    ahead = options["read_ahead"]
    if ahead != "keep" and not ahead.isdigit():
        raise InputError(f"--read-ahead {ahead}: give KiB, or keep")
    sizes = [
        parse_bytes(options[name]) if options[name] else None
        for name in ("memory_limit", "read_bandwidth")
    ]
    names = ("rounds", "tokens", "warm", "n_ctx", "n_ubatch", "probe_seconds")
    return Settings(
        **{name: options[name] for name in names},
        limits=Limits(*sizes),
        read_ahead_kib=None if ahead == "keep" else int(ahead),
    )


def _arms(path: Path, options: dict[str, Any]) -> list[Arm]:
    import os

    from remoe_edge.bench.arms import arms
    from remoe_edge.engine.budget import check
    from remoe_edge.files.models import shipped_routers

    routers: dict[str, str | None] = {}
    for name in _list(options["routers"]):
        if name == "off":
            routers[name] = None
        elif name == "on":
            routers[name] = str(shipped_routers(path).absolute())
        else:
            if not Path(name).is_file():
                raise InputError(f"no routers at {name}; write off, on or an overlay's path")
            routers[Path(name).name] = str(Path(name).absolute())
    caches = _list(options["cache"])
    for cache in caches:
        check(cache)
    counts = _list(options["threads"] or str(len(os.sched_getaffinity(0))))
    if not all(count.isdigit() and int(count) for count in counts):
        raise InputError(f"--threads {options['threads']}: give numbers, such as 1,2,4")
    return arms(
        _list(options["arms"]),
        caches=caches,
        threads=[int(count) for count in counts],
        routers=routers,
    )


def _questions(path: Path, options: dict[str, Any], settings: Settings) -> list[Question]:
    from remoe_edge.bench.questions import Vocabulary
    from remoe_edge.bench.workloads import prompts_file, workload

    vocabulary = Vocabulary(path)
    if options["text"] is not None:
        n_tokens = settings.warm + settings.tokens
        return vocabulary.follow(options["text"], options["text_prompt"], n_tokens)
    if options["prompts"] is not None:
        prompts = prompts_file(options["prompts"], options["limit"])
    else:
        names = _list(options["workload"])
        prompts = [each for name in names for each in workload(name, options["limit"])]
    return vocabulary.ask(prompts, raw=options["raw"])


# --- running and reporting ---


def _measure(
    path: Path,
    arms: list[Arm],
    questions: list[Question],
    settings: Settings,
    line: str,
    json_path: Path | None,
) -> tuple[dict[str, Any], bool]:
    """Run the session; return its record, and whether it was left to end."""
    from remoe_edge.bench import record
    from remoe_edge.bench.session import Session

    refused: list[str] = []

    def saved(so_far: dict[str, Any]) -> None:
        if json_path is None or refused:
            return
        try:
            record.write(so_far, json_path)
        except RemoeError as error:  # said now, and again at the end, where it counts
            refused.append(str(error))
            say(str(error))

    with _ending_once(), _status() as progress:
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


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str, int, str, int], None]]:
    """Give a callback that shows where a bench is on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda arm, number, prompt, n_tokens: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda arm, number, prompt, n_tokens: status.update(
            escape(f"round {number}, {arm}: {prompt or 'loading'} {n_tokens or ''}")
        )


def _report(record: dict[str, Any]) -> None:
    from rich.console import Console

    from remoe_edge.bench.table import disturbances, remarks, tables

    console = Console()
    # Whole lines, also through a pipe, which has no width.
    console = Console(width=None if console.is_terminal else 160)
    for table in tables(record):
        console.print(table)
    for line in remarks(record) + disturbances(record):
        click.echo(escape(line))


def _show(found: dict[str, Any]) -> None:
    """Print a comparison, what is not alike first."""
    from rich.console import Console

    from remoe_edge.bench.compare import table

    for line in found["differences"]:
        say(f"note: {line}")
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table(found))


def _write(
    record: dict[str, Any], json_path: Path | None, csv_path: Path | None, html_path: Path | None
) -> None:
    from remoe_edge.bench import record as records

    if json_path is not None:
        records.write(record, json_path)
    if csv_path is not None:
        from remoe_edge.bench.tokens_csv import tokens_csv

        records.write_text(tokens_csv(record), csv_path)
    if html_path is not None:
        from remoe_edge.bench.page import page

        records.write_text(page(record), html_path)
