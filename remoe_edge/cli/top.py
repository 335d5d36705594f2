"""`remoe-edge top`: watch the engines that run for this user, and the machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.serve_extra import needing_serve
from remoe_edge.cli.terminal import escape, say

if TYPE_CHECKING:
    from remoe_edge.telemetry import Sample, Sampler

_MIB = 1 << 20
_ONCE_S = 0.3  # loads and pressures are differences of two looks
_HEAD = ("PID", "MODEL", "STATE", "TOK/S", "HITS", "READ", "STALL", "CACHE", "MEMORY", "TOKENS")


@click.command(name="top")
@option("--once", is_flag=True, help="Look once and end.")
@options.json_flag("Each look is an object in a line of its own.")
@option(
    "--interval",
    type=Number(0.2, 60),
    default=1,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@option(
    "--metrics",
    metavar="[HOST:]PORT",
    help="Serve /metrics for Prometheus; without HOST, to this machine alone. Shows nothing else.",
)
def command(once: bool, as_json: bool, interval: float, metrics: str | None) -> None:
    """Show the running engines and plugged programs of this user, and the machine.

    Rates are those of the last 16 tokens. Ctrl-C ends.
    """
    from remoe_edge.telemetry import Sampler

    if metrics is not None:
        _serve(metrics)
        return
    with Sampler(hz=min(10.0, max(1.0, 1 / interval))) as sampler:
        try:
            if once:
                time.sleep(max(_ONCE_S, sampler.interval_s))
                _print(sampler, as_json)
            else:
                _go_on(sampler, as_json, interval)
        except KeyboardInterrupt:
            return


def _serve(address: str) -> None:
    """Serve what runs as it is asked, until Ctrl-C."""
    import threading

    with needing_serve("--metrics"):
        from remoe_edge.telemetry.metrics_server import MetricsServer
    from remoe_edge.telemetry.running_metrics import families
    from remoe_edge.telemetry.status import folders, running

    where = folders(os.environ.get("XDG_RUNTIME_DIR"))
    server = MetricsServer(lambda: families(running(where)), address)
    try:
        say(f"metrics at {server.url}")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


def _go_on(sampler: Sampler, as_json: bool, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if as_json or not console.is_terminal or console.is_dumb_terminal:
        while True:
            time.sleep(interval)
            _print(sampler, as_json)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            text = Text("\n".join(lines(look(sampler))), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)
            time.sleep(interval)


def _print(sampler: Sampler, as_json: bool) -> None:
    seen = look(sampler)
    if as_json:
        click.echo(json.dumps(seen, ensure_ascii=False))
    else:
        click.echo("\n".join(lines(seen)))


def look(sampler: Sampler) -> dict[str, Any]:
    """Gather what there is to show; engines carry their resident memory, if it can be had."""
    from remoe_edge.telemetry.status import folders, running

    engines = running(folders(os.environ.get("XDG_RUNTIME_DIR")))
    for engine in engines:
        engine["resident_bytes"] = _resident_bytes(engine)
    sample = sampler.latest
    return {
        "unix_s": round(time.time(), 3),
        "machine": {} if sample is None else _machine(sample),
        "power_source": sampler.power_source,
        "engines": engines,
    }


def _machine(sample: Sample) -> dict[str, Any]:
    told = sample.as_json()
    told.pop("faults", None)  # this command's own, as its memory and its load
    for group, name in (("memory_bytes", "rss"), ("loads_percent", "process")):
        told.get(group, {}).pop(name, None)
    return told


def _resident_bytes(engine: dict[str, Any]) -> int | None:
    import psutil

    try:
        process = psutil.Process(int(engine["pid"]))
        if process.create_time() > float(engine["started_unix_s"]) + 1:
            return None  # another process: the engine's is in another container
        return int(process.memory_info().rss)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def lines(seen: dict[str, Any]) -> list[str]:
    """Write a look as lines for a terminal of any kind."""
    told = [_machine_line(seen["machine"], seen["power_source"])]
    if not seen["engines"]:
        return [*told, "no engine is running"]
    rows = [_HEAD, *(_row(engine) for engine in seen["engines"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = [
            text.ljust(width) if name in ("MODEL", "STATE") else text.rjust(width)
            for name, text, width in zip(_HEAD, row, widths, strict=True)
        ]
        told.append(escape("  ".join(cells).rstrip()))
    return told


def _machine_line(machine: dict[str, Any], power_source: str | None) -> str:
    parts = []
    if "power_w" in machine:
        parts.append(f"{machine['power_w']:.1f} W ({power_source})")
    else:
        parts.append("no power sensor")
    if temperatures := machine.get("temperatures_c"):
        hottest = max(temperatures, key=lambda name: temperatures[name])
        parts.append(f"{temperatures[hottest]:.1f} °C ({hottest})")
    memory = machine.get("memory_bytes", {})
    if "available" in memory:
        parts.append(f"{memory['available'] / _MIB:,.0f} MiB available")
    loads, pressures = machine.get("loads_percent", {}), machine.get("pressures_percent", {})
    if "cpu" in loads:
        parts.append(f"CPU {loads['cpu']:.0f} %")
    if loads.get("steal", 0) >= 1:
        parts.append(f"stolen {loads['steal']:.0f} %")
    if "gpu" in loads:
        parts.append(f"GPU {loads['gpu']:.0f} %")
    for name, what in (("io_some", "I/O"), ("memory_some", "memory")):
        if name in pressures:
            parts.append(f"{what} pressure {pressures[name]:.0f} %")
    if "nvpmodel" in machine:
        parts.append(f"mode {machine['nvpmodel']}")
    return escape(", ".join(parts))


def _row(engine: dict[str, Any]) -> tuple[str, ...]:
    recent, totals = engine.get("recent", {}), engine.get("totals", {})

    def shown(value: Any, form: str, scale: float = 1.0) -> str:
        return "-" if value is None else form.format(value * scale)

    return (
        str(engine.get("pid")),
        Path(str(engine.get("model", "-"))).name[:40],
        f"{engine.get('state')}, lossy" if engine.get("lossy") else str(engine.get("state")),
        shown(recent.get("tokens_per_s"), "{:.2f}"),
        shown(recent.get("hit_rate"), "{:.1f} %", 100),
        shown(recent.get("read_mib_per_s"), "{:,.1f} MiB/s"),
        shown(recent.get("stall_share"), "{:.0f} %", 100),
        shown(engine.get("budget_bytes"), "{:,.0f} MiB", 1 / _MIB),
        shown(engine.get("resident_bytes"), "{:,.0f} MiB", 1 / _MIB),
        shown(totals.get("n_generated"), "{:,.0f}"),
    )
