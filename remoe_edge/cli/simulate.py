"""`remoe-edge simulate`: replay a trace through the eviction policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from remoe_edge.routing.simulate import Outcome


@click.command(name="simulate")
@click.argument("trace_path", metavar="TRACE", type=click.Path(path_type=Path))
@click.option("--policy", default="all", show_default=True, help="`all`, or names: lru,arc,...")
@click.option(
    "--cache", default="10%,25%,50%", show_default=True,
    help="Cache sizes: shares of all experts, or slots.",
)  # fmt: skip
@click.option("--profile", type=click.Path(path_type=Path), help="Fitted by `remoe-edge profile`.")
@click.option("--warm", default=0, metavar="STEPS", help="Steps that fill the cache uncounted.")
@click.option("--steps", metavar="FROM:TO", help="Replay only these steps of the trace.")
@click.option("--expert-bytes", type=click.IntRange(min=1), help="Bytes of one expert.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--plot", "plot_path", metavar="FILE.png", help="Draw misses against cache size.")
def command(
    trace_path: Path,
    policy: str,
    cache: str,
    profile: Path | None,
    warm: int,
    steps: str | None,
    expert_bytes: int | None,
    as_json: bool,
    plot_path: str | None,
) -> None:
    """Replay TRACE (recorded, or .npz) through the engine's own eviction code.

    Misses are counted with all experts of a step's layer pinned together, from an empty cache.
    `gap` is the share of the misses between LRU and the optimum that a policy saves.
    """
    from remoe_edge.errors import InputError
    from remoe_edge.profile import read_profile
    from remoe_edge.routing import simulate as simulation
    from remoe_edge.routing.trace import read_trace

    trace = read_trace(trace_path)
    if steps is not None:
        begin, colon, end = steps.partition(":")
        if not (colon and begin.isdigit() and end.isdigit()):
            raise InputError(f"--steps {steps}: give FROM:TO, such as 4000:5500")
        trace = trace.tokens(int(begin), int(end))
    total = trace.n_layers * trace.n_experts
    outcomes = simulation.simulate(
        trace,
        simulation.parse_policies(policy),
        [simulation.parse_cache(text.strip(), total) for text in cache.split(",")],
        profile=read_profile(profile) if profile else None,
        warm_tokens=warm,
        expert_bytes=expert_bytes,
    )
    if plot_path:
        simulation.plot(outcomes, plot_path, str(trace.meta.get("model") or trace_path.name))
    if as_json:
        click.echo(json.dumps(simulation.as_json(trace, outcomes), indent=1))
        return
    _table(outcomes)


def _table(outcomes: list[Outcome]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("cache")
    table.add_column("policy")
    for name in ("hits", "hit rate", "misses/token", "MiB/token", "gap"):
        table.add_column(name, justify="right")
    slots = None
    for outcome in outcomes:
        first = outcome.slots != slots
        if first and slots is not None:
            table.add_section()
        slots = outcome.slots
        mib = outcome.bytes_per_token
        table.add_row(
            f"{outcome.cache_share:.1%} · {slots} slots" if first else "",
            outcome.policy,
            str(outcome.hits),
            f"{outcome.hit_rate:.2%}",
            f"{outcome.misses_per_token:.3f}",
            "" if mib is None else f"{mib / 2**20:.1f}",
            "" if outcome.gap_share is None else f"{outcome.gap_share:.1%}",
        )
    Console(width=None if Console().is_terminal else 110).print(table)
