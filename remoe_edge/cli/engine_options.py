"""The options that every command which runs a model shares, and the engine made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import gpu_options, lossy_options, options, placement_options
from remoe_edge.cli.deployment_folder import folder
from remoe_edge.cli.old_spellings import Decorator, Function, Old, option
from remoe_edge.cli.terminal import loading_bar, say

if TYPE_CHECKING:
    from remoe_edge.api import Engine
    from remoe_edge.deploy.metering import Metering
    from remoe_edge.engine.observers import Observer


def _chosen_routers(ctx: click.Context, param: click.Parameter, value: str) -> str | None:
    """Give None for `off`, `default` for those beside the model, or a file's path."""
    return {"off": None, "on": "default"}.get(value, value)


_OPTIONS: tuple[Decorator, ...] = (
    options.model,
    options.cache(default="auto"),
    options.policy(),
    options.profile(),
    option(
        "--past-prompts", type=options.KEPT_FILE, metavar="FILE",
        help="Predict a prompt's experts from similar prompts that were asked before, and keep "
        "those in the cache longer. The file grows with each prompt.",
    ),
    options.prefetch(),
    options.routers(callback=_chosen_routers),
    option("--no-stream", is_flag=True, help="Load the whole model, as llama.cpp does."),
    options.context(),
    options.threads(),
    options.ubatch(),
    option(
        "--flash-attention", type=click.Choice(["auto", "on", "off"]), default="auto",
        show_default=True, help="Compute attention in one fused operation.",
    ),
    options.repack(
        default=None,
        more="Each expert is rearranged whenever it is read, so it pays where nearly all fit; on by "
        "default only with --no-stream.",
    ),
    options.io(old=[Old("--io-backend")]),
    options.direct(),
    option(
        "--depth", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
        help="Reads in flight; 0 lets the engine choose.",
    ),
    gpu_options.gpu_layers(),
    option(
        "--draft", type=click.Choice(["off", "auto", "on", "mtp"]), default="off", show_default=True,
        help="Guess tokens from the text so far and verify several in one step; auto does so while it "
        "makes tokens cheaper, and mtp lets the model's own layers for it guess as well. The last bits "
        "of logits may differ then (docs/drafts.md).",
    ),
    gpu_options.experts_on(),
    *lossy_options.every(),
    options.peers(),
    placement_options.deployment(),
    options.keys(),
    option("--verbose", is_flag=True, help="Show the log of llama.cpp."),
)  # fmt: skip


def engine_options(function: Function) -> Function:
    """Add the options of `open_engine` to a command."""
    for each in reversed(_OPTIONS):
        function = each(function)
    return function


def open_engine(
    model: Path | None,
    *,
    routers: str | None,
    no_stream: bool,
    repack: bool | None,
    profile: Path | None = None,
    past_prompts: Path | None = None,
    trace: Path | None = None,
    telemetry: Sequence[Observer] | None = None,
    publish: bool | Path = False,
    peers: Sequence[str] | None = None,
    deployment: str | Path | None = None,
    cache: str = "auto",
    metering: Metering | None = None,
    quality_loss: str | None = None,
    reproducible: bool = False,
    price_list: Path | None = None,
    **settings: Any,
) -> Engine:
    """Load the model that the options name, with a bar on stderr; say the engine's notes once."""
    from remoe_edge.files.models import shipped_model, shipped_routers

    path = model or shipped_model()
    overlay = shipped_routers(path) if routers == "default" else routers
    from remoe_edge.api import Engine
    from remoe_edge.engine.settings import EngineSettings

    deployed = None
    if deployment is not None:
        from remoe_edge.deploy.deploying import WorkerSizes
        from remoe_edge.deploy.record import find, load_for

        deployed = find(folder(), str(deployment))
        placement = load_for(deployed, path).placement
        local = placement.local
        if metering is not None and metering.table is None:
            metering.table = placement.table
        if cache == "auto":  # as many experts as the plan keeps here
            cache = str(WorkerSizes(path).main_cache_bytes(sum(len(layer) for layer in local)))
    asked = EngineSettings(
        cache=cache,
        routers=overlay,
        stream=not no_stream,
        # Whole models as llama.cpp has them; streamed ones pay again for every miss.
        repack=no_stream if repack is None else repack,
        peers=peers or (),
        **settings,
    )
    if metering is not None:
        telemetry = [*(telemetry or ()), metering]
    with loading_bar(path.name, shown=not asked.verbose) as progress:
        engine = Engine(
            path,
            asked,
            profile=profile,
            past_prompts=past_prompts,
            trace=trace,
            telemetry=telemetry,
            deployment=deployed,
            publish=publish,
            quality_loss=quality_loss,
            reproducible=reproducible,
            price_list=price_list,
            progress=progress,
        )
    if metering is not None:
        metering.watch(engine)
    for note in engine.notes:
        say(note)
    return engine
