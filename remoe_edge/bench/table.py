"""The record of a bench as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoe_edge.bench import summary
from remoe_edge.machine.power_mode import PowerMode
from remoe_edge.units import MIB, mib

if TYPE_CHECKING:
    from rich.console import RenderableType


def span(figure: dict[str, float], digits: int = 1) -> str:
    """Write a median, and its interval where there is one."""
    if figure["low"] == figure["high"]:
        return f"{figure['median']:,.{digits}f}"
    return (
        f"{figure['median']:,.{digits}f} [{figure['low']:,.{digits}f}–{figure['high']:,.{digits}f}]"
    )


def tables(record: dict[str, Any]) -> list[RenderableType]:
    """Make the speed table and the one of what it took."""
    from rich import box
    from rich.table import Table

    speed = Table(box=box.SIMPLE, title=_title(record), title_justify="left")
    speed.add_column("arm", no_wrap=True)
    for heading in ("ms/token", "p50", "p90", "p99", "tok/s", "TTFT, ms", "start to token, s", "×"):
        speed.add_column(heading, justify="right", no_wrap=True)
    cost = Table(box=box.SIMPLE)
    cost.add_column("arm", no_wrap=True)
    priced = record.get("prices")
    currency = [f"{priced['currency']}/answer"] if priced else []
    helped = any(each.get("experts_by_peers") is not None for each in record["summary"].values())
    by_peers = ["by peers"] if helped else []
    for heading in (
        "load, s", "stall", "compute", "hit rate", "misses", "MiB/token", "faults", "peak", "J/token",
        *by_peers, *currency,
    ):  # fmt: skip
        cost.add_column(heading, justify="right", no_wrap=True)
    for name, figures in record["summary"].items():
        against = figures.get("against")
        speed.add_row(
            _marked(name, figures),
            span(figures["tpot_ms"]),
            *(f"{figures[f'p{share}_ms']['median']:,.1f}" for share in (50, 90, 99)),
            f"{figures['tokens_per_s']['median']:.2f}",
            span(figures["ttft_ms"], 0),
            f"{figures['first_token_ms']['median'] / 1000:.2f}",
            "" if against is None else span(against["tpot_ratio"], 2),
        )
        cost.add_row(
            _marked(name, figures),
            f"{figures['load_ms']['median'] / 1000:.2f}",
            _one(figures.get("stall_ms"), 1),
            _one(figures.get("compute_ms"), 1),
            "" if figures.get("hit_rate") is None else f"{figures['hit_rate']:.1%}",
            _one(figures.get("misses"), 1),
            _one(figures["storage_bytes"] / MIB, 1),
            _one(figures["major_faults"], 0),
            "" if figures["peak_bytes"] is None else mib(figures["peak_bytes"]),
            _one(figures["joules_per_token"], 2),
            *([_one(figures.get("experts_by_peers"), 0)] if helped else []),
            *([f"{figures['cost_an_answer']:.4g}"] if priced else []),
        )
    return [speed, cost]


def remarks(record: dict[str, Any]) -> list[str]:
    """Say in lines what a reader of the tables has to know."""
    settings = record["settings"]
    limits = settings["limits"]
    lines = [
        f"{settings['rounds']} rounds, {len(record['prompts'])} prompts, {settings['tokens']} timed "
        f"tokens each after {settings['warm']} that are not; medians of the rounds [95 % bootstrap]"
    ]
    held = []
    if limits["memory_bytes"] is not None:
        held.append(f"memory limit {mib(limits['memory_bytes'])}")
    if limits["read_bytes_per_s"] is not None:
        held.append(f"reads capped at {mib(limits['read_bytes_per_s'])}/s")
    kernel = record["read_ahead"] or {"kib": None, "note": ""}
    box = "no cgroup" if record["box"] == "none" else record["box"]
    held.append(f"{box}; read-ahead {kernel['kib']} KiB ({kernel['note']})")
    touched = record.get("touched_bytes")
    if touched:
        held.append(f"memory touched before every arm: {mib(touched)}")
    lines.append(", ".join(held) + f"; page cache {record['page_cache'] or 'not dropped'}")
    if clocks := clocks_line(record["machine"]):
        lines.append(clocks)
    if len({arm["bits"] for arm in record["arms"].values()}) < len(record["arms"]):
        agreed = "DIFFERENT TOKENS" if record["differs"] else "same tokens"
        lines.append(f"arms of the same bits: {agreed}")
    lines += summary.partings(record)
    lines += _guesses(record)
    lines += list(record["skipped"].values())
    lines += [f"failed: {reason}" for reason in record["failed"].values()]
    if record["differs"]:
        lines.append(record["differs"]["line"])
    if not record["complete"]:
        lines.append(f"not complete: {record['ended']} after {len(record['runs'])} runs")
    return lines


def _guesses(record: dict[str, Any]) -> list[str]:
    """Say how many tokens each arm with drafts guessed, and that their percentiles are of steps."""
    counts: dict[str, tuple[int, int]] = {}
    for run in record["runs"]:
        if drafts := run.get("drafts"):
            guessed, right = counts.get(run["arm"], (0, 0))
            counts[run["arm"]] = guessed + drafts["guessed"], right + drafts["right"]
    return [
        f"{arm}: {right} of {guessed} guesses right; a token that was guessed comes with its step, so "
        "p50 to p99 are not times between tokens"
        for arm, (guessed, right) in counts.items()
    ]


def clocks_line(machine: dict[str, Any]) -> str:
    """Say the power mode and how the clocks were set, as far as a record knows them."""
    told = PowerMode(
        None, machine.get("power_mode"), {}, machine.get("clocks_held"), machine.get("governor")
    )
    return told.line()


def disturbances(record: dict[str, Any]) -> list[str]:
    """Say of every run that was throttled or disturbed what was seen."""
    return [
        f"* disturbed: {run['arm']}, round {run['round']}: {'; '.join(run['marks'])}"
        for run in record["runs"]
        if run["marks"]
    ]


def _title(record: dict[str, Any]) -> str:
    model = record["model"]
    name = model["name"] or model["file"]
    return f"{name}, {mib(model['file_bytes'])}, on {record['machine']['cpu']}"


def _marked(name: str, figures: dict[str, Any]) -> str:
    return f"{name} *" if figures["disturbed_rounds"] else name


def _one(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
