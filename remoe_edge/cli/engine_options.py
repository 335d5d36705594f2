"""The options that every command which runs a model shares, and the engine made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from remoe_edge.cli.terminal import loading_bar, say

if TYPE_CHECKING:
    from remoe_edge.api import Engine
    from remoe_edge.engine.observers import Observer

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "-m", "--model", "model", type=click.Path(path_type=Path), metavar="GGUF",
        help="The model, or the first of its shards; without it, the one that comes along.",
    ),
    click.option(
        "--cache", default="auto", show_default=True, metavar="SIZE",
        help="Memory for experts: auto, 1500MiB, 30% of them, or plan:250ms for a time per token.",
    ),
    click.option(
        "--policy", default="reuse-biased", show_default=True, metavar="NAME",
        help="Which expert leaves the cache.",
    ),
    click.option(
        "--profile", type=click.Path(path_type=Path), metavar="FILE",
        help="Keep what is learned of this model between runs: fitted weights, hot experts.",
    ),
    click.option(
        "--past-prompts", type=click.Path(path_type=Path), metavar="FILE",
        help="Keep what past prompts activated, and expect the same of similar ones.",
    ),
    click.option(
        "--prefetch", type=click.Choice(["auto", "off", "on"]), default="auto", show_default=True,
        help="Read ahead what the next layers will want; auto keeps what proves faster.",
    ),
    click.option(
        "--routers", metavar="GGUF",
        help="Tuned routers made for this model; `default`: those beside it.",
    ),
    click.option("--no-stream", is_flag=True, help="Load everything whole, as llama.cpp does."),
    click.option(
        "--ctx", "n_ctx", type=click.IntRange(min=0), default=0, metavar="N",
        help="Tokens of context; 0: the model's, up to 4096.",
    ),
    click.option(
        "-t", "--threads", type=click.IntRange(min=1), metavar="N",
        help="Compute threads; without it, one for each core.",
    ),
    click.option(
        "--ubatch", "n_ubatch", type=click.IntRange(min=1), default=512, show_default=True,
        metavar="N", help="Tokens of a prompt computed at once, at most.",
    ),
    click.option(
        "--flash-attention", type=click.Choice(["auto", "on", "off"]), default="auto",
        show_default=True,
    ),
    click.option(
        "--repack/--no-repack", default=None,
        help="Rearrange weights for other kernels; by default only with --no-stream.",
    ),
    click.option(
        "--io-backend", type=click.Choice(["auto", "io_uring", "pread"]), default="auto",
        show_default=True, help="How experts are read.",
    ),
    click.option("--no-direct", is_flag=True, help="Read through the page cache."),
    click.option(
        "--depth", type=click.IntRange(min=0), default=0, metavar="N",
        help="Reads in flight; 0 chooses.",
    ),
    click.option("--verbose", is_flag=True, help="Show llama.cpp's log."),
)  # fmt: skip


def engine_options(function: Function) -> Function:
    """Add the options of `open_engine` to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def open_engine(
    model: Path | None,
    *,
    routers: str | None,
    no_stream: bool,
    repack: bool | None,
    no_direct: bool,
    io_backend: str,
    profile: Path | None = None,
    past_prompts: Path | None = None,
    trace: Path | None = None,
    telemetry: Sequence[Observer] | None = None,
    publish: bool | Path = False,
    **settings: Any,
) -> Engine:
    """Load the model that the options name, with a bar on stderr; say the engine's notes once."""
    from remoe_edge.files.models import shipped_model, shipped_routers

    path = model or shipped_model()
    overlay = shipped_routers(path) if routers == "default" else routers
    from remoe_edge.api import Engine
    from remoe_edge.engine.settings import EngineSettings

    asked = EngineSettings(
        routers=overlay,
        stream=not no_stream,
        # Whole models as llama.cpp has them; streamed ones pay again for every miss.
        repack=no_stream if repack is None else repack,
        direct=not no_direct,
        io=io_backend,
        **settings,
    )
    with loading_bar(path.name, shown=not asked.verbose) as progress:
        engine = Engine(
            path,
            asked,
            profile=profile,
            past_prompts=past_prompts,
            trace=trace,
            telemetry=telemetry,
            publish=publish,
            progress=progress,
        )
    for note in engine.notes:
        say(note)
    return engine
