"""The record of a bench as one page: no script, no request, readable on a phone, light or dark."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from remoe_edge.bench import charts
from remoe_edge.bench.plots import plots
from remoe_edge.bench.table import disturbances, remarks, span
from remoe_edge.files import pictures
from remoe_edge.units import MIB, mib

_STYLE = Path(__file__).with_suffix(".css")


def page(record: dict[str, Any]) -> str:
    """Write the page. A record without a run has only its head and remarks.

    Without matplotlib there are no plots, and a line says how to get them.
    """
    model = record["model"]
    name = model["name"] or model["file"]
    drawn = plots(record) if record["runs"] and pictures.available() else []
    figures = "".join(
        f"<figure><h2>{escape(plot.heading)}</h2><figcaption>{escape(plot.note)}</figcaption>"
        f"{plot.svg}</figure>"
        for plot in drawn
    )
    lines = remarks(record)
    if not pictures.available():
        lines = [*lines, "no plots: they need matplotlib (pip install 'remoe-edge[plot]')"]
    notes = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>remoe-edge bench: {escape(name)}</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}{_colours()}</style></head><body>"
        f"<header><h1>{escape(name)}</h1>{_about(record)}</header>"
        f'<main>{_cards(record)}<ul class="notes">{notes}</ul>{_disturbed(record)}{_legend(record)}'
        f'<section class="plots">{figures}</section>{_details(record)}</main>'
        "</body></html>\n"
    )


def _colours() -> str:
    return "".join(f"i.c{i}{{background:var(--c{i})}}" for i in range(charts.N_COLOURS))


def _about(record: dict[str, Any]) -> str:
    model, machine = record["model"], record["machine"]
    experts = ""
    if model["expert_layers"]:
        experts = (
            f", {model['expert_layers']} × {model['experts_per_layer']} experts, "
            f"{model['experts_used']} used"
        )
    board = machine["board"] or machine["cpu"]
    virtual = " (virtual)" if machine["virtual"] else ""
    pick = (record["storage"]["probe"] or {}).get("pick")
    storage = "" if pick is None else f", storage {pick['mib_per_s']:.0f} MiB/s"
    lines = [
        f"{model['architecture']}, {'/'.join(model['types'])}, {mib(model['file_bytes'])}{experts}",
        f"{board}{virtual}, {machine['cpus']} CPUs, {mib(machine['memory_bytes'])}, "
        f"Linux {machine['kernel']}{storage}",
        record["command"],
        f"{record['started']} – {record['finished']}",
    ]
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)


def _cards(record: dict[str, Any]) -> str:
    headings = (
        "ms/token", "p50", "p90", "p99", "tok/s", "× stock", "TTFT, ms", "start to token, s",
        "load, s", "stall, ms", "compute, ms", "hit rate", "MiB/token", "faults/token", "peak",
        "energy of a run, J", "J/token", "J/token above idle", "disturbed",
    )  # fmt: skip
    cards = []
    for name, figures in record["summary"].items():
        against = figures.get("against")
        cells = (
            span(figures["tpot_ms"]),
            *(f"{figures[f'p{share}_ms']['median']:,.1f}" for share in (50, 90, 99)),
            f"{figures['tokens_per_s']['median']:.2f}",
            "" if against is None else span(against["tpot_ratio"], 2),
            span(figures["ttft_ms"], 0),
            f"{figures['first_token_ms']['median'] / 1000:.2f}",
            f"{figures['load_ms']['median'] / 1000:.2f}",
            _one(figures.get("stall_ms")),
            _one(figures.get("compute_ms")),
            "" if figures.get("hit_rate") is None else f"{figures['hit_rate']:.1%}",
            f"{figures['storage_bytes'] / MIB:,.1f}",
            f"{figures['major_faults']:,.0f}",
            "" if figures["peak_bytes"] is None else mib(figures["peak_bytes"]),
            _one(figures["energy_joules"]),
            _one(figures["joules_per_token"], 3),
            _one(figures["net_joules_per_token"], 3),
            f"{figures['disturbed_rounds']} of {figures['rounds']}",
        )
        cards.append(
            f"<article><h2>{escape(name)}</h2><dl>"
            + "".join(
                f"<dt>{escape(heading)}</dt><dd>{escape(cell)}</dd>"
                for heading, cell in zip(headings, cells, strict=True)
                if cell
            )
            + "</dl></article>"
        )
    return f'<section class="arms">{"".join(cards)}</section>'


def _disturbed(record: dict[str, Any]) -> str:
    lines = disturbances(record)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    heading = f"{len(lines)} of {len(record['runs'])} runs were disturbed"
    return f'<details><summary>{heading}</summary><ul class="notes">{items}</ul></details>'


def _legend(record: dict[str, Any]) -> str:
    items = "".join(
        f'<li><i class="c{i % charts.N_COLOURS}"></i>{escape(name)}</li>'
        for i, name in enumerate(record["arms"])
        if name in record["summary"]
    )
    return f'<ul class="legend">{items}</ul>'


def _details(record: dict[str, Any]) -> str:
    kept = (
        "machine",
        "software",
        "storage",
        "model",
        "settings",
        "read_ahead",
        "power",
        "arms",
        "prompts",
    )
    text = json.dumps({name: record[name] for name in kept}, indent=1, ensure_ascii=False)
    return f"<details><summary>All settings</summary><pre>{escape(text)}</pre></details>"


def _one(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
