"""`remoe-edge plan`: find the smallest memory budget that meets a latency target."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from remoe_edge.plan.planner import Plan, Point


@click.command(name="plan")
@click.argument("model", metavar="GGUF", type=click.Path(path_type=Path))
@click.option("--memory", metavar="SIZE", help="For the whole process; without it, what is free.")
@click.option("--tpot", metavar="TIME", help="Target for a token: 250ms, 0.25s.")
@click.option("--ttft", metavar="TIME", help="Target for the first token of a prompt: 3s.")
@click.option("--trace", "trace_path", type=click.Path(path_type=Path), help="The model's routing.")
@click.option("--prompt-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option("--answer-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option("--policy", metavar="NAME", help="Which expert leaves the cache.")
@click.option("--profile", type=click.Path(path_type=Path), help="Fitted by `remoe-edge profile`.")
@click.option(
    "--ctx", "n_ctx", default=0, type=click.IntRange(min=0), metavar="N",
    help="Tokens of context; 0: the model's, up to 4096.",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Compute threads.")
@click.option(
    "--pools/--no-pools", default=True,
    help="With a trace, try a pool for each layer too (slow with many layers).",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Measure this machine again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: Path,
    memory: str | None,
    tpot: str | None,
    ttft: str | None,
    trace_path: Path | None,
    prompt_tokens: int,
    answer_tokens: int,
    policy: str | None,
    profile: Path | None,
    n_ctx: int,
    threads: int | None,
    pools: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Predict the time of a token of GGUF at every cache size, and the least that meets a target.

    Computing and storage are measured here, in a few seconds; misses are those of the trace in a
    replay, or published figures of another model where there is none. The worst case assumes
    routing without any reuse.
    """
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.errors import InputError
    from remoe_edge.machine.memory import available
    from remoe_edge.plan.planner import Targets
    from remoe_edge.plan.report import as_json as report
    from remoe_edge.plan.run import run_plan
    from remoe_edge.units import parse_bytes, parse_ms

    if not model.is_file():
        raise InputError(f"no model at {model}")
    targets = Targets(
        None if tpot is None else parse_ms(tpot),
        None if ttft is None else parse_ms(ttft),
        prompt_tokens,
        answer_tokens,
    )
    plan = run_plan(
        model,
        EngineSettings(policy=policy or EngineSettings.policy, n_ctx=n_ctx, threads=threads),
        memory_bytes=available().available_bytes if memory is None else parse_bytes(memory),
        targets=targets,
        trace_path=trace_path,
        profile_path=profile,
        pools=pools,
        fresh=fresh,
        progress=_progress,
    )
    _progress("")
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(report(plan), indent=1))
        return
    _table(plan)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", nl=False, err=True)


def _table(plan: Plan) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from remoe_edge.plan.layers import GLOBAL
    from remoe_edge.units import MIB

    machine = plan.machine
    click.echo(
        f"this machine: {machine.resident_ms:.1f} ms a token with everything resident; reads of "
        f"{machine.sizes.layers[0].block_bytes // 1024} KiB, {machine.reads.depth} in flight: "
        f"{machine.bandwidth / MIB:.0f} MiB/s beside computing"
    )
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
    Console(width=max(Console().width, 140)).print(table)
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
