"""`remoe-edge eval`: compare routers on held-out text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli.tune import load_decoder, require_torch
from remoe_edge.errors import InputError
from remoe_edge.files.models import shipped_routers

if TYPE_CHECKING:
    from torch import Tensor

    from remoe_edge.tune.decoder import Decoder


def _named(value: str) -> tuple[str, Path]:
    name, separator, path = value.partition("=")
    return (name, Path(path)) if separator else (Path(value).stem, Path(value))


def _load_routers(path: Path, model: Path, decoder: Decoder, fingerprint: str) -> list[Tensor]:
    from remoe_edge.tune.record import load_overlay_routers, load_routers

    if path == Path("default"):
        path = shipped_routers(model)
    if path.suffix == ".gguf":
        return load_overlay_routers(path, model, decoder.shape)
    return load_routers(path, decoder.shape, fingerprint)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--routers",
    multiple=True,
    metavar="[NAME=]FILE",
    help="tuned routers to compare with the model's own: .safetensors, an overlay (.gguf), or "
    "'default' for the overlay beside MODEL; may be repeated",
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="held-out text (.txt), chat (.jsonl) or token (.npy) files, or a folder",
)
@click.option("--window", default=512, show_default=True, help="tokens the model reads at a time")
@click.option("--batch", default=8, show_default=True, help="windows per forward pass")
@click.option(
    "--tokens", default=20000, show_default=True, help="tokens of each domain to read; 0: all"
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="precision of the weights: bfloat16 on cuda, float32 on cpu",
)
@click.option("--seed", default=0, show_default=True, help="seed of the bootstrap")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="write all figures here")
@click.option(
    "--png",
    type=click.Path(path_type=Path),
    help="draw misses against perplexity, a point for each --routers",
)
def command(
    model: Path,
    routers: tuple[str, ...],
    data: tuple[Path, ...],
    window: int,
    batch: int,
    tokens: int,
    device: str,
    dtype: str,
    seed: int,
    json_path: Path | None,
    png: Path | None,
) -> None:
    """Compare MODEL's own routers and tuned ones: perplexity, reuse, misses, spread."""
    require_torch()
    from remoe_edge.tune.data import load_domains
    from remoe_edge.tune.measure import DomainMeasure, measure_domain, summarise
    from remoe_edge.tune.record import base_fingerprint, describe_data, versions

    if window < 2 or batch < 1 or tokens < 0:
        raise InputError("--window must be at least 2, --batch 1 and --tokens 0")
    if png is not None and not routers:
        raise InputError("--png draws points of tuned routers: give --routers")
    decoder = load_decoder(model, device, dtype)
    if window > decoder.shape.context:
        raise InputError(f"--window {window} is beyond the model's {decoder.shape.context} tokens")
    fingerprint = base_fingerprint(model)
    variants = {"base": decoder.routers}
    for value in routers:
        name, path = _named(value)
        if name in variants:
            raise InputError(f"two sets of routers are named {name!r}; write --routers NAME=FILE")
        variants[name] = _load_routers(path, model, decoder, fingerprint)
    domains = load_domains(data, model, window, decoder.n_vocab, tokens)
    measured: dict[str, dict[str, DomainMeasure]] = {}
    for name, values in variants.items():
        measured[name] = {}
        for domain in domains:
            click.echo(f"{name}: {domain.name}", err=True)
            measured[name][domain.name] = measure_domain(
                decoder, values, domain, window, batch=batch
            )
    base = measured["base"]
    summaries = {
        name: summarise(values, None if name == "base" else base, seed)
        for name, values in measured.items()
    }
    report = {
        "model": model.name,
        "window": window,
        "n_experts": decoder.shape.n_experts,
        "top_k": decoder.shape.top_k,
        "layers": len(decoder.shape.router_layers),
        "chance_eor": decoder.shape.top_k / decoder.shape.n_experts,
        "data": describe_data(domains),
        "versions": versions(),
        "routers": summaries,
    }
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1))
    if png is not None:
        from remoe_edge.tune.plots import draw_pareto

        draw_pareto({n: s for n, s in summaries.items() if n != "base"}, png)
    _print_table(summaries)


def _print_table(summaries: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="mean [95 % interval], change against base in brackets below")
    for heading in ("routers", "domain", "perplexity", "EOR"):
        table.add_column(heading)
    keys = list(next(iter(summaries["base"].values()))["misses_per_token"])
    for key in keys:
        policy, fraction = key.split("@")
        table.add_column(f"{policy} misses/token\n{100 * float(fraction):g} %", justify="right")
    table.add_column("entropy", justify="right")
    table.add_column("load", justify="right")
    spans = list(next(iter(summaries["base"].values()))["distinct_experts"])
    table.add_column("distinct per layer\n" + "/".join(spans), justify="right")
    for name, summary in summaries.items():
        for domain, s in summary.items():
            change = s.get("change_percent")
            table.add_row(
                name,
                domain,
                _cell(s["perplexity"], change and change["perplexity"], "{:.3f}"),
                _cell(s["eor"], change and change["eor"], "{:.3f}"),
                *(
                    _cell(
                        s["misses_per_token"][key],
                        change and change["misses_per_token"][key],
                        "{:.2f}",
                    )
                    for key in keys
                ),
                f"{s['routing_entropy']['value']:.3f}",
                f"{s['load']['effective_share']:.2f}",
                "/".join(f"{s['distinct_experts'][span]['value']:.1f}" for span in spans),
            )
        table.add_section()
    console = Console(markup=False)
    # A pipe has no width: do not fold the table to 80 columns there.
    (console if console.is_terminal else Console(width=240, markup=False)).print(table)


def _cell(figure: dict[str, float], change: dict[str, float] | None, form: str) -> str:
    text = form.format(figure["value"])
    text += f" [{form.format(figure['low'])}, {form.format(figure['high'])}]"
    if change:
        text += f"\n({change['value']:+.2f} % [{change['low']:+.2f}, {change['high']:+.2f}])"
    return text
