"""`remoe-edge simulate`: replay a trace through the eviction policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import Old, option
from remoe_edge.cli.results import give
from remoe_edge.cli.terminal import print_tables

if TYPE_CHECKING:
    from remoe_edge.routing.schedules import Outcome as ScheduleOutcome
    from remoe_edge.routing.simulate import Outcome
    from remoe_edge.routing.trace import Trace


@click.command(name="simulate")
@click.argument("trace_path", metavar="TRACE", type=options.FILE)
@options.policy(default="all", several=True, more="`all` replays every one.")
@options.cache(
    default="10%,25%,50%",
    several=True,
    more="A number alone counts experts; several may be given, as in 10%,25%.",
)
@options.profile()
@options.warm(default=0)
@option(
    "--range",
    "span",
    metavar="FROM:TO",
    old=[Old("--steps")],
    help="Replay only these tokens of the trace.",
)
@option(
    "--expert-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Bytes of one expert, if the trace does not say.",
)
@option(
    "--schedule",
    metavar="NAME[,...]",
    help="Replay the trace's answers as conversations that take turns: `turns` by token, `batch` all in "
    "one step, `32` in slices of so many tokens, `4x32` the same four at a time, `32:ring` in the order "
    "that the server keeps.",
)
@options.output("It holds what --json prints.")
@options.json_flag()
@options.plot("It shows misses against the cache's size.")
def command(
    trace_path: Path,
    policy: tuple[str, ...],
    cache: tuple[str, ...],
    profile: Path | None,
    warm: int,
    span: str | None,
    expert_bytes: int | None,
    schedule: str | None,
    output: Path | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Replay TRACE, a recorded one or an .npz file, through the engine's own eviction code.

    The cache is empty at first. While a layer computes, all experts of its step stay in the cache
    together. `gap` is the share of the misses between LRU and the optimum that a policy saves.
    """
    from remoe_edge.errors import InputError
    from remoe_edge.files.atomic import check_output
    from remoe_edge.profile import read_profile
    from remoe_edge.routing import simulate as simulation
    from remoe_edge.routing.trace import read_trace

    for path in filter(None, (output, plot)):
        check_output(path, [trace_path])
    trace = read_trace(trace_path)
    if span is not None:
        begin, colon, end = span.partition(":")
        if not (colon and begin.isdecimal() and end.isdecimal()):
            raise InputError(f"--range {span}: give FROM:TO, such as 4000:5500")
        trace = trace.tokens(int(begin), int(end))
    total = trace.n_layers * trace.n_experts
    policies = simulation.parse_policies(",".join(policy))
    slots = [
        simulation.parse_cache(text, total, expert_bytes or trace.expert_bytes) for text in cache
    ]
    fitted = read_profile(profile) if profile else None
    if schedule is not None:
        if plot is not None or warm:
            raise click.UsageError("--schedule goes without --plot and --warm")
        _schedules(trace, schedule, policies, slots, fitted, output, as_json=as_json)
        return
    outcomes = simulation.simulate(
        trace,
        policies,
        slots,
        profile=fitted,
        warm_tokens=warm,
        expert_bytes=expert_bytes,
    )
    result = simulation.as_json(trace, outcomes)
    try:
        if plot is not None:
            simulation.plot(outcomes, str(plot), str(trace.meta.get("model") or trace_path.name))
    finally:
        give(result, output, as_json=as_json, show=lambda: _table(outcomes))


def _schedules(
    trace: Trace,
    text: str,
    policies: list[str],
    slots: list[int],
    profile: bytes | None,
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    from remoe_edge.routing import schedules

    plans = schedules.parse_plans(text)
    outcomes = schedules.simulate(trace, plans, policies, slots, profile)
    result = schedules.as_json(trace, outcomes)
    give(result, output, as_json=as_json, show=lambda: _schedule_table(outcomes))


def _schedule_table(outcomes: list[ScheduleOutcome]) -> None:
    from rich import box
    from rich.table import Table

    from remoe_edge.routing.schedules import ALONE

    table = Table(box=box.SIMPLE)
    for name in ("cache", "policy", "schedule"):
        table.add_column(name)
    for name in ("misses/token", "times alone"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        first = outcome.schedule == ALONE
        if first and outcome is not outcomes[0]:
            table.add_section()
        table.add_row(
            f"{outcome.cache_share:.1%} · {outcome.slots} slots" if first else "",
            outcome.policy if first else "",
            outcome.schedule,
            f"{outcome.misses_per_token:.2f}",
            f"{outcome.times_alone:.2f}",
        )
    print_tables(table, width=110)


def _table(outcomes: list[Outcome]) -> None:
    from rich import box
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
    print_tables(table, width=110)
