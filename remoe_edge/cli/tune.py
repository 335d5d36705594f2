"""`remoe-edge tune`: fine-tune a model's routers to reuse experts."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.numbers import Finite
from remoe_edge.cli.old_spellings import Old, option
from remoe_edge.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from remoe_edge.tune.decoder import Decoder
    from remoe_edge.tune.trainer import Report, Trainer

# What each knob of a run does. Those that `eval` has too are declared in options.py.
_HELP = {
    "steps": "Steps of the optimiser.",
    "lr": "Learning rate of AdamW.",
    "lr_warmup": "Steps until the learning rate is full.",
    "loc_warmup": "Steps until the locality terms have their full weight (T_warm).",
    "clip": "Limit of the gradient's norm.",
    "ema": "Share that the average of the routers, the result, keeps in a step; 0: no average.",
    "ce": "Weight of the cross entropy.",
    "distill": "Weight of KL(base || tuned) of the next token's distribution.",
    "ppl_budget": "Perplexity that no domain shall lose more of, as 0.01 for 1 %; 0: no limit.",
    "kl": "Weight of the trust KL to the reference router.",
    "miss": "Weight of the soft misses of an LRU cache of --cache-slots.",
    "overlap": "Weight of the soft overlap of neighbours' choices, 1 - EOR.",
    "reuse": "Weight of the reuse mass, -log(rho).",
    "smooth": "Weight of the symmetric KL of neighbours.",
    "lag": "Weight of the symmetric KL at lags 1, 2, 4, 8, 16.",
    "ws": "Weight of the entropy of each window's mean distribution.",
    "ws_window": "Tokens of such a window (W).",
    "cache_slots": "Experts that the cache holds, over all layers; 0: a quarter of all.",
    "miss_temperature": "Softness of the choice in the soft misses and overlap, in logits.",
    "miss_softness": "Softness of the cache's edge in the soft misses, as a share of its slots.",
    "miss_through_past": "Let the soft misses credit a choice for the tokens after it.",
    "recompute": "Recompute activations in the backward pass: less memory, a third slower.",
}


def _settings_options(function: Any) -> Any:
    from remoe_edge.tune.settings import Settings

    shared: dict[str, Any] = {
        "batch": options.batch(default=Settings.batch),
        "window": options.window(default=Settings.window),
        "seed": options.seed(default=Settings.seed),
        "dtype": options.dtype(),
    }
    for f in reversed(fields(Settings)):
        if f.name in shared:
            function = shared[f.name](function)
            continue
        name = f"--{f.name.replace('_', '-')}"
        extra: dict[str, Any] = {"help": _HELP[f.name], "default": f.default, "show_default": True}
        if isinstance(f.default, bool):
            name, extra["is_flag"] = f"{name}/--no-{f.name.replace('_', '-')}", True
        else:
            extra["type"] = Finite() if isinstance(f.default, float) else int
            extra["metavar"] = "N" if isinstance(f.default, int) else "X"
        function = option(name, f.name, **extra)(function)
    return function


@click.command()
@options.model
@options.data()
@options.output(
    "It is a .safetensors file; a record and curves go beside it.",
    required=True,
    old=[Old("--out")],
)
@options.device()
@options.routers(more="Tuning begins at them; the model's own stay the reference.")
@options.data_tokens(default=0)
@option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="Steps between two checkpoints.",
)
@options.fresh("Ignores a checkpoint.")
@_settings_options
def command(
    model: Path,
    data: tuple[Path, ...],
    output: Path,
    device: str,
    routers: str,
    data_tokens: int,
    checkpoint_every: int,
    fresh: bool,
    **values: Any,
) -> None:
    """Fine-tune MODEL's routers, and nothing else, to reuse experts.

    MODEL may also be a Hugging Face folder. An interrupted run goes on from its checkpoint when the
    same command is given again.
    """
    require_torch()
    from remoe_edge.tune.data import load_domains
    from remoe_edge.tune.record import (
        base_fingerprint,
        load_named_routers,
        save_routers,
        write_whole,
    )
    from remoe_edge.tune.settings import Settings
    from remoe_edge.tune.trainer import Trainer

    settings = Settings(**values)
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: the output's name must end in .safetensors")
    decoder = load_decoder(model, device, settings.dtype)
    domains = load_domains(data, model, settings.window, decoder.n_vocab, data_tokens)
    fingerprint = base_fingerprint(model)
    start = None
    if routers != "off":
        start = load_named_routers(routers, model, decoder.shape, fingerprint)
    trainer = Trainer(decoder, domains, settings, start)
    state = output.with_suffix(".checkpoint")
    if fresh:
        state.unlink(missing_ok=True)
    elif state.exists():
        trainer.resume(state)
        click.echo(f"going on from step {trainer.step} ({state})", err=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    _train(trainer, state, checkpoint_every)
    record = trainer.run_record()
    record["started_from"] = "the model's own routers" if start is None else Path(routers).name
    brief = {key: value for key, value in record.items() if key != "history"}
    if not fingerprint and not model.is_dir():
        click.echo("no fingerprint: the extension is not built; routers name no base", err=True)
    save_routers(output, trainer.averaged, decoder.shape, fingerprint, brief)
    write_whole(output.with_suffix(".json"), json.dumps(record, indent=1).encode())
    curves = output.with_suffix(".png")
    try:
        from remoe_edge.tune.plots import draw_curves

        draw_curves(trainer.history, curves)
        click.echo(f"curves: {curves}", err=True)
    except UnsupportedError as error:
        click.echo(f"no curves: {error}", err=True)
    click.echo(str(output))


def _train(trainer: Trainer, state: Path, every: int) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("tune"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=trainer.settings.steps, completed=trainer.step, terms="")

        def on_step(report: Report) -> None:
            terms = f"EOR {report['eor']:.3f}  CE {report['ce']:.4f}  KL {report['kl']:.4f}"
            progress.update(task, completed=int(report["step"]), terms=terms)
            if not console.is_terminal and report["step"] % every == 0:
                click.echo(f"step {report['step']:.0f}: {terms}", err=True)

        # Half an optimiser step could not be resumed: Ctrl-C waits for the step's end.
        stops: list[int] = []
        before = signal.signal(signal.SIGINT, lambda number, _: stops.append(number))
        try:
            finished = trainer.run(on_step, state, every, lambda: bool(stops))
        finally:
            signal.signal(signal.SIGINT, before)
    if not finished:
        click.echo(f"stopped at step {trainer.step}; the same command goes on", err=True)
        sys.exit(130)


def require_torch() -> None:
    """Say which extra is missing before anything is imported that needs it."""
    # Read once, when torch loads OpenMP: threads that spin while they wait starve a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        import remoe_edge.tune.loading  # noqa: F401
    except ImportError as error:
        if error.name == "torch":
            raise UnsupportedError(
                "this command needs torch: pip install 'remoe-edge[tune]'"
            ) from error
        raise UnsupportedError(f"this command needs torch, which does not load: {error}") from error


def load_decoder(model: Path, device: str, dtype: str) -> Decoder:
    """Load a model on a device, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    from remoe_edge.tune import loading

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("load", total=None)
        return loading.load_decoder(
            model,
            device,
            dtype,
            on_layer=lambda done, total: progress.update(task, completed=done, total=total),
        )
