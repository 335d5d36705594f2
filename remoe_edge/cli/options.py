"""The command line's dialect: each option that more than one command has is declared here, once.

A command may choose the default, say that an option is required, and add a sentence of its own to the
help. What an option is called, what it takes and what it means is the same in every command;
tests/test_cli_dialect.py holds all commands to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from remoe_edge.cli import file_arguments
from remoe_edge.cli.file_arguments import met
from remoe_edge.cli.old_spellings import Decorator, Function, Old, option, tell

if TYPE_CHECKING:
    _AnyType = click.ParamType[Any]
else:
    _AnyType = click.ParamType  # takes no type arguments at run time before click 8.4

PATH, FILE, FOLDER = file_arguments.PATH, file_arguments.FILE, file_arguments.FOLDER
KEPT_FILE, OutputFile = file_arguments.KEPT_FILE, file_arguments.OutputFile

DEFAULT_POLICY = "reuse-biased"


class Several(_AnyType):
    """Values of one type, separated by commas; they become a tuple."""

    def __init__(self, each: click.ParamType[Any]) -> None:
        self.each = each
        self.name = f"{each.name} list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Convert each, and refuse a list of none."""
        if not isinstance(value, str):
            return tuple(value)
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            self.fail("the list is empty", param, ctx)
        return tuple(self.each.convert(part, param, ctx) for part in parts)


class Routers(_AnyType):
    """`off`, `default` or the path of a file. `on` is how `default` was once written in bench."""

    name = "routers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Leave the text as it is, and say how `on` is written now."""
        if value == "on" and ctx is not None:
            tell(ctx, "--routers on", "--routers default")
        if value not in ("on", "off", "default"):
            met(ctx, Path(str(value)), is_written=False)
        return str(value)


ROUTERS = Routers()


# --- which model ---


class _ModelArgument(click.Argument):
    """MODEL, which `-m MODEL` may give as well; without either, the model that comes along."""

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)
        named = opts.get("named_model")
        if isinstance(named, list):  # each -m
            several = [*([value] if isinstance(value, str) else []), *named]
            if len(several) > 1:
                raise click.UsageError(f"two models are named: {several[0]} and {several[1]}", ctx)
            return named[0], ParameterSource.COMMANDLINE
        return value, source


def _chosen_model(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None or ctx.resilient_parsing:
        return value
    from remoe_edge.files.models import shipped_model

    return shipped_model()


def model(function: Function) -> Function:
    """Add MODEL and -m/--model; the command gets a path, the shipped model's if none is given."""
    named = option(
        "-m", "--model", "named_model", type=PATH, metavar="MODEL", expose_value=False,
        multiple=True,  # to refuse a second one
        help="The model: a GGUF file, or the first of its shards. The same as MODEL alone; without "
        "either, the model that comes with remoe-edge.",
    )  # fmt: skip
    positional = click.argument(
        "model", type=PATH, required=False, metavar="[MODEL]", cls=_ModelArgument,
        callback=_chosen_model,
    )  # fmt: skip
    return positional(named(function))


# --- what goes in and out ---


def output(help: str, *, required: bool = False, old: Sequence[Old] = ()) -> Decorator:
    """Add -o/--output, a file that the command writes; `help` says what is in it."""
    return option(
        "-o", "--output", type=OutputFile(), required=required, metavar="FILE", old=old,
        help=f"Write the result to this file. {help}",
    )  # fmt: skip


def output_folder(help: str, *, required: bool = False, old: Sequence[Old] = ()) -> Decorator:
    """Add -o/--output, a folder that the command writes."""
    return option(
        "-o", "--output", type=FOLDER, required=required, metavar="FOLDER", old=old,
        help=f"Write the result to this folder. {help}",
    )  # fmt: skip


def json_flag(more: str = "") -> Decorator:
    """Add --json: the result on stdout, for a program to read."""
    return option(
        "--json", "as_json", is_flag=True, help=_text("Print one JSON object on stdout.", more)
    )


def plot(help: str, *, needs: str | None = None, old: Sequence[Old] = ()) -> Decorator:
    """Add --plot, a picture beside the figures; `needs`: the option whose points it shows."""
    add = option(
        "--plot", type=OutputFile(), metavar="FILE", old=old,
        help=f"Draw the result into this file (.png, .svg or .pdf). {help}",
    )  # fmt: skip
    return lambda function: add(file_arguments.drawing(function, needs))


def prompts(*, required: bool = False) -> Decorator:
    """Add --prompts."""
    return option(
        "--prompts", type=FILE, required=required, metavar="FILE",
        help='Read the prompts from this file: .jsonl with a "prompt" in each line, or texts with '
        "a line `---` between them.",
    )  # fmt: skip


def data() -> Decorator:
    """Add --data."""
    return option(
        "--data", multiple=True, required=True, type=PATH, metavar="PATH",
        help="Read this text (.txt), chat (.jsonl) or token (.npy) file, or all of a folder. Each "
        "file is a domain of its own; may be repeated.",
    )  # fmt: skip


def data_tokens(*, default: int, old: Sequence[Old] = ()) -> Decorator:
    """Add --data-tokens."""
    return option(
        "--data-tokens", type=click.IntRange(min=0), default=default, show_default=True,
        metavar="N", old=old, help="Read at most this many tokens of each domain; 0 reads all.",
    )  # fmt: skip


def base(*, required: bool) -> Decorator:
    """Add --base."""
    more = "" if required else "If given, the result is checked against it."
    return option(
        "--base", type=FILE, required=required, metavar="FILE",
        help=_text("The GGUF that the routers belong to.", more),
    )  # fmt: skip


# --- how a model is run ---


FOLLOWED = (
    "With auto it is what is free, followed as it changes; with plan:250ms what meets a time per "
    "token, followed too."
)


def cache(*, default: str, several: bool = False, more: str = FOLLOWED) -> Decorator:
    """Add --cache; `more` says what else than a size the command takes."""
    return option(
        "--cache", type=Several(click.STRING) if several else None, default=default,
        show_default=True, metavar="SIZE[,...]" if several else "SIZE",
        help=_text("Memory for experts: 1500MiB, or 30% (of all experts).", more),
    )  # fmt: skip


def policy(*, default: str = DEFAULT_POLICY, several: bool = False, more: str = "") -> Decorator:
    """Add --policy."""
    return option(
        "--policy", type=Several(click.STRING) if several else None, default=default,
        show_default=True, metavar="NAME[,...]" if several else "NAME",
        help=_text("The eviction policy: which expert leaves the cache.", more),
    )  # fmt: skip


def prefetch() -> Decorator:
    """Add --prefetch."""
    return option(
        "--prefetch", type=click.Choice(["auto", "off", "on"]), default="auto", show_default=True,
        help="Prefetch the experts that the next layers will probably need; auto does so while it "
        "makes tokens faster.",
    )  # fmt: skip


def profile() -> Decorator:
    """Add --profile."""
    return option(
        "--profile", type=KEPT_FILE, metavar="FILE",
        help="The model's profile: what `remoe-edge profile` fitted, and which experts are hot. "
        "chat, serve and trace also keep it up to date.",
    )  # fmt: skip


def routers(*, several: bool = False, more: str = "", **settings: Any) -> Decorator:
    """Add --routers."""
    return option(
        "--routers", type=Several(ROUTERS) if several else ROUTERS,
        **{"default": "off", "show_default": True, "metavar": "off|default|FILE", **settings},
        help=_text(
            "Tuned routers to use instead of the model's own: off, default (the overlay beside the "
            "model) or a file.",
            more,
        ),
    )  # fmt: skip


def context(*, more: str = "0 takes the model's own length, up to 4096.") -> Decorator:
    """Add --ctx."""
    return option(
        "--ctx", "n_ctx", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
        help=_text("The context's length in tokens.", more),
    )  # fmt: skip


def threads(*, several: bool = False, more: str = "") -> Decorator:
    """Add -t/--threads."""
    count = click.IntRange(min=1)
    return option(
        "-t", "--threads", type=Several(count) if several else count,
        metavar="N[,...]" if several else "N",
        help=_text(
            "Threads that compute; one for each big core, as far as a CPU quota goes, if not given.",
            more,
        ),
    )  # fmt: skip


def ubatch() -> Decorator:
    """Add --ubatch."""
    return option(
        "--ubatch", "n_ubatch", type=click.IntRange(min=1), default=512, show_default=True,
        metavar="N", help="Compute at most this many tokens of a prompt at once.",
    )  # fmt: skip


def io(*, old: Sequence[Old]) -> Decorator:
    """Add --io."""
    return option(
        "--io", type=click.Choice(["auto", "io_uring", "pread"]), default="auto",
        show_default=True, help="The system call that reads experts.", old=old,
    )  # fmt: skip


def direct(*, old: Sequence[Old] = ()) -> Decorator:
    """Add --direct/--no-direct."""
    return option(
        "--direct/--no-direct", default=True, show_default=True, old=old,
        help="Read past the page cache (O_DIRECT), or through it.",
    )  # fmt: skip


def repack(*, default: bool | None, more: str) -> Decorator:
    """Add --repack/--no-repack."""
    return option(
        "--repack/--no-repack", default=default,
        help=_text("Rearrange quantised weights for faster kernels.", more),
    )  # fmt: skip


def memory(*, required: bool = False, more: str) -> Decorator:
    """Add --memory."""
    return option(
        "--memory", required=required, metavar="SIZE",
        help=_text("Memory to keep to, such as 4GiB.", more),
    )  # fmt: skip


def peers(*, more: str = "") -> Decorator:
    """Add --peers."""
    text = (
        "Have these workers (`remoe-edge worker`) compute experts that are not in the cache. A worker "
        "that is slow or gone costs time, never an answer."
    )
    return option(
        "--peers", type=Several(click.STRING), metavar="HOST:PORT[,...]", help=_text(text, more)
    )


def keys() -> Decorator:
    """Add --keys; the command gets `peer_keys`."""
    return option(
        "--keys", "peer_keys", type=FILE, metavar="FILE",
        help="A file of `remoe-edge keys`, worker.pem for a worker and client.pem for who names --peers: "
        "connections are encrypted and both sides proven. Beyond this machine it is needed.",
    )  # fmt: skip


# --- what it is asked ---


def max_tokens(
    *, default: int, at_least: int = 1, more: str = "", old: Sequence[Old] = ()
) -> Decorator:
    """Add -n/--max-tokens."""
    return option(
        "-n", "--max-tokens", type=click.IntRange(min=at_least), default=default,
        show_default=True, metavar="N", old=old, help=_text("Tokens of an answer, at most.", more),
    )  # fmt: skip


def raw() -> Decorator:
    """Add --raw."""
    return option(
        "--raw", is_flag=True, help="Continue the prompt as it is, without the chat template."
    )


def warm(*, default: int) -> Decorator:
    """Add --warm."""
    return option(
        "--warm", type=click.IntRange(min=0), default=default, show_default=True, metavar="N",
        help="Tokens that fill the cache first and are not counted.",
    )  # fmt: skip


def seed(*, default: int | None, more: str = "") -> Decorator:
    """Add --seed."""
    return option(
        "--seed", type=click.IntRange(0, 2**32 - 2), default=default,
        show_default=default is not None, metavar="N",
        help=_text("Seed of all random choices: the same seed gives the same result.", more),
    )  # fmt: skip


def fresh(more: str) -> Decorator:
    """Add --fresh."""
    return option(
        "--fresh", is_flag=True, help=_text("Start over, without what an earlier run kept.", more)
    )


# --- tuning and evaluating ---


def window(*, default: int) -> Decorator:
    """Add --window."""
    return option(
        "--window", type=click.IntRange(min=2), default=default, show_default=True, metavar="N",
        help="Tokens of a sequence, which the model reads at a time.",
    )  # fmt: skip


def batch(*, default: int) -> Decorator:
    """Add --batch."""
    return option(
        "--batch", type=click.IntRange(min=1), default=default, show_default=True, metavar="N",
        help="Sequences that are computed together.",
    )  # fmt: skip


def device() -> Decorator:
    """Add --device."""
    return option(
        "--device", default="cpu", show_default=True, metavar="NAME",
        help="Where to compute: cpu, cuda or cuda:N.",
    )  # fmt: skip


def dtype() -> Decorator:
    """Add --dtype."""
    return option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
        show_default=True,
        help="Precision of the frozen weights; auto is bfloat16 on cuda and float32 on cpu.",
    )  # fmt: skip


def _text(first: str, more: str) -> str:
    return f"{first} {more}" if more else first
