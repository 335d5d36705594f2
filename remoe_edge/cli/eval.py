"""`remoe-edge eval`: compare routers on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import JsonPathCommand, Old
from remoe_edge.cli.results import give
from remoe_edge.cli.terminal import print_tables
from remoe_edge.cli.tune import load_decoder, require_torch
from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from remoe_edge.tune.decoder import Routers


def _named(value: str) -> tuple[str, str]:
    name, separator, path = value.partition("=")
    return (name, path) if separator else (Path(value).stem, value)


@click.command(cls=JsonPathCommand)
@options.model
@options.routers(
    multiple=True,
    default=None,
    show_default=False,
    metavar="[NAME=]off|default|FILE",
    more="They are compared with the model's own; may be repeated, and named.",
)
@options.data()
@options.window(default=512)
@options.batch(default=8)
@options.data_tokens(default=20000, old=[Old("--tokens")])
@options.device()
@options.dtype()
@options.seed(default=0)
@options.output("It holds what --json prints.")
@options.json_flag()
@options.plot(
    "It shows misses against perplexity, a point for each --routers.",
    needs="routers",
    old=[Old("--png")],
)
def command(
    model: Path,
    routers: tuple[str, ...],
    data: tuple[Path, ...],
    window: int,
    batch: int,
    data_tokens: int,
    device: str,
    dtype: str,
    seed: int,
    output: Path | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Compare MODEL's own routers with tuned ones: perplexity, reuse, misses, spread.

    MODEL may also be a Hugging Face folder.
    """
    require_torch()
    from remoe_edge.files.atomic import check_output
    from remoe_edge.tune.data import load_domains
    from remoe_edge.tune.measure import DomainMeasure, measure_domain, summarise
    from remoe_edge.tune.record import (
        base_fingerprint,
        describe_data,
        load_named_routers,
        versions,
    )

    for path in filter(None, (output, plot)):
        check_output(path, [model])
    decoder = load_decoder(model, device, dtype)
    if window > decoder.shape.context:
        raise InputError(f"--window {window} is beyond the model's {decoder.shape.context} tokens")
    fingerprint = base_fingerprint(model)
    variants: dict[str, Routers] = {"base": decoder.routers}
    for value in routers:
        name, which = _named(value)
        if which == "off":
            continue  # the model's own are always measured
        if name in variants:
            raise InputError(f"two sets of routers are named {name!r}; write --routers NAME=FILE")
        variants[name] = load_named_routers(which, model, decoder.shape, fingerprint)
    domains = load_domains(data, model, window, decoder.n_vocab, data_tokens)
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
    try:
        if plot is not None:
            from remoe_edge.tune.plots import draw_pareto

            draw_pareto({n: s for n, s in summaries.items() if n != "base"}, plot)
    finally:
        give(report, output, as_json=as_json, show=lambda: _print_table(summaries))


def _print_table(summaries: dict[str, Any]) -> None:
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
    print_tables(table, width=240)


def _cell(figure: dict[str, float], change: dict[str, float] | None, form: str) -> str:
    text = form.format(figure["value"])
    text += f" [{form.format(figure['low'])}, {form.format(figure['high'])}]"
    if change:
        text += f"\n({change['value']:+.2f} % [{change['low']:+.2f}, {change['high']:+.2f}])"
    return text
