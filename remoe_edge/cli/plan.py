"""`remoe-edge plan`: find the smallest memory budget that meets a latency target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options, placement_options
from remoe_edge.cli.old_spellings import Old, option
from remoe_edge.cli.results import give, print_json
from remoe_edge.cli.terminal import print_tables, show_progress

if TYPE_CHECKING:
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.plan.planner import Plan, Point, Targets


@click.command(name="plan")
@options.model
@options.memory(more="It is for the whole process; without it, what is free.")
@option("--tpot", metavar="TIME", help="Target for the time of a token: 250ms, 0.25s.")
@option("--ttft", metavar="TIME", help="Target for the time to a prompt's first token: 3s.")
@placement_options.slo()
@placement_options.price()
@placement_options.link(more="It matters with --price.")
@placement_options.function_times(more="It matters with --price.")
@placement_options.trace_file()
@placement_options.prompt_tokens()
@options.max_tokens(default=256, old=[Old("--answer-tokens")])
@options.policy()
@options.profile()
@options.context()
@options.threads()
@option(
    "--pools/--no-pools",
    default=True,
    show_default=True,
    help="With --trace, also try a pool for each layer; slow if there are many.",
)
@options.fresh("Measures this machine again.")
@options.output("With --price: the placement, as JSON.")
@options.json_flag()
def command(
    model: Path,
    memory: str | None,
    tpot: str | None,
    ttft: str | None,
    slo: str | None,
    price: str | None,
    link: str,
    function_times: Path | None,
    trace_path: Path | None,
    prompt_tokens: int,
    max_tokens: int,
    policy: str,
    profile: Path | None,
    n_ctx: int,
    threads: int | None,
    pools: bool,
    fresh: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Predict MODEL's time per token at every cache size, and find the least that meets a target.

    The command measures computing and storage here, which takes a few seconds. It counts misses by
    replaying the trace; without one it takes published figures of another model. The worst case
    assumes that no token reuses an expert.

    With --price, experts may also go to functions elsewhere that are paid for by use: the answer is the
    placement that keeps the targets and costs least.
    """
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.errors import InputError
    from remoe_edge.machine.memory import available
    from remoe_edge.plan.planner import Targets
    from remoe_edge.plan.remote import parse_slo
    from remoe_edge.plan.report import as_json as report
    from remoe_edge.plan.run import run_plan
    from remoe_edge.units import parse_bytes, parse_ms

    if not model.is_file():
        raise InputError(f"no model at {model}")
    if slo is not None:
        if tpot is not None or ttft is not None:
            raise InputError("--slo names both targets: give it, or --tpot and --ttft")
        asked = parse_slo(slo)
        limits = asked.tpot_ms, asked.ttft_ms
    else:
        limits = (
            None if tpot is None else parse_ms(tpot),
            None if ttft is None else parse_ms(ttft),
        )
    targets = Targets(*limits, prompt_tokens, max_tokens)
    if price is not None:
        for name, given in (("--memory", memory), ("--profile", profile)):
            if given is not None:
                raise InputError(
                    f"{name} goes without --price: what it costs decides how much memory is taken, and "
                    "the trace alone says which experts are used"
                )
        _place(model, EngineSettings(policy=policy, n_ctx=n_ctx, threads=threads), targets, price,
               link, function_times, trace_path, fresh, output, as_json)  # fmt: skip
        return
    if output is not None:
        raise InputError("--output writes a placement: give --price too")
    plan = run_plan(
        model,
        EngineSettings(policy=policy, n_ctx=n_ctx, threads=threads),
        memory_bytes=available().available_bytes if memory is None else parse_bytes(memory),
        targets=targets,
        trace_path=trace_path,
        profile_path=profile,
        pools=pools,
        fresh=fresh,
        progress=show_progress,
    )
    show_progress("")
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        print_json(report(plan))
        return
    _table(plan)


def _place(
    model: Path, settings: EngineSettings, targets: Targets, price: str, link: str,
    function_times: Path | None, trace_path: Path | None, fresh: bool, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from remoe_edge.cli.placement_lines import placement_lines
    from remoe_edge.errors import InputError
    from remoe_edge.files.atomic import check_output
    from remoe_edge.placement import placement_file
    from remoe_edge.placement.price import load
    from remoe_edge.placement.request import Slo, Workload
    from remoe_edge.plan.remote import parse_link, run_placement

    if targets.tpot_ms is None and targets.ttft_ms is None:
        raise InputError("--price wants a target too, as in --slo tpot=250ms,ttft=3s")
    if output is not None:
        check_output(output, [model])
    placement = run_placement(
        model, settings, table=load(price), slo=Slo(targets.tpot_ms, targets.ttft_ms),
        link=parse_link(link), workload=Workload(targets.n_prompt, targets.n_answer),
        trace_path=trace_path, function_times=function_times, fresh=fresh, progress=show_progress,
    )  # fmt: skip
    show_progress("")
    for note in placement.notes:
        click.echo(f"note: {note}", err=True)
    lines = "\n".join(placement_lines(placement))
    give(
        placement_file.as_dict(placement), output, as_json=as_json, show=lambda: click.echo(lines),
        write=lambda _, path: placement_file.save(placement, path),
    )  # fmt: skip


def _table(plan: Plan) -> None:
    from rich import box
    from rich.table import Table

    from remoe_edge.machine.power_mode import power_mode
    from remoe_edge.plan.layers import GLOBAL
    from remoe_edge.units import MIB

    machine = plan.machine
    click.echo(
        f"this machine: {machine.resident_ms:.1f} ms a token with everything resident; reads of "
        f"{machine.sizes.layers[0].block_bytes // 1024} KiB, {machine.reads.depth} in flight: "
        f"{machine.bandwidth / MIB:.0f} MiB/s beside computing"
    )
    if clocks := power_mode().line():
        click.echo(f"measured with: {clocks}")
    click.echo(f"misses: {plan.source}")
    click.echo(f"worst case: {plan.bound_source}")
    table = Table(box=box.SIMPLE)
    for name in (
        "experts", "cache MiB", "in all MiB", "misses/token", "MiB/token", "TPOT ms", "fitted",
        "worst case", "if all overlapped", "TTFT cold", "TTFT warm",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for point in plan.points:
        table.add_row(*_cells(plan, point))
    print_tables(table, width=140, least_width=140)
    if plan.fit is not None:
        fit = plan.fit
        click.echo(
            f"T(y) = {fit.theta1:.4g}·exp(−{fit.theta2:.4g}·y) + {fit.theta3:.4g} ms, y in MiB of "
            f"cache: RMSE {fit.rmse:.2f} ms, relative {fit.relative:.1%}, at most {fit.worst:.1%}"
        )
    for pool in plan.pools:
        told = ", ".join(f"{each.name} {each.tpot_ms:.1f} ms" for each in pool.outcomes)
        mark = "" if pool.winner == GLOBAL else " (the engine has one pool)"
        click.echo(
            f"pools of {pool.n_slots} experts, judged by replay: {told}: {pool.winner} wins{mark}"
        )
    _answers(plan)


def _cells(plan: Plan, point: Point) -> list[str]:
    from remoe_edge.units import MIB

    fitted = "" if plan.fit is None else f"{plan.fit(point.cache_bytes / MIB):.1f}"
    return [
        f"{point.share:.0%}",
        f"{point.cache_bytes / MIB:,.0f}",
        f"{point.total_bytes / MIB:,.0f}",
        f"{point.misses:.2f}",
        f"{point.bytes_per_token / MIB:.1f}",
        f"{point.tpot_ms:.1f}",
        fitted,
        f"{point.bound_tpot_ms:.1f}",
        f"{point.floor_ms:.1f}",
        f"{point.cold_ttft_ms:.0f}",
        f"{point.warm_ttft_ms:.0f}",
    ]


def _answers(plan: Plan) -> None:
    targets: dict[str, Any] = {"TPOT": plan.targets.tpot_ms, "TTFT": plan.targets.ttft_ms}
    wanted = " and ".join(f"{n} ≤ {v:g} ms" for n, v in targets.items() if v is not None)
    if not wanted:
        return
    for name, point in (("expected", plan.expected), ("worst case", plan.bound)):
        if point is None:
            best = plan.points[-1]
            click.echo(
                f"{wanted}, {name}: out of reach; with {_size(best.total_bytes)} in all it is "
                f"{best.bound_tpot_ms:.0f} ms a token, {best.bound_ttft_ms:.0f} ms to the first"
            )
            continue
        tpot = point.tpot_ms if name == "expected" else point.bound_tpot_ms
        click.echo(
            f"{wanted}, {name}: --cache {-(-point.cache_bytes // 1024)}KiB "
            f"({_size(point.cache_bytes)}, {point.share:.0%} of the experts; "
            f"{_size(point.total_bytes)} in all): {tpot:.1f} ms a token"
        )


def _size(n_bytes: float) -> str:
    from remoe_edge.units import mib

    return mib(n_bytes)
