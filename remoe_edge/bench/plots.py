"""What of a record is worth a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.bench.charts import Series, heat_map, line_chart
from remoe_edge.units import MIB

Floats = npt.NDArray[np.float64]

_MOST_POINTS = 300
_HEAT_COLUMNS = 48
_HIT_WINDOW = 8


@dataclass(frozen=True)
class Plot:
    """Hold a plot's heading, a line that says how to read it, and its SVG ("" where there is none)."""

    heading: str
    note: str
    svg: str


def plots(record: dict[str, Any]) -> list[Plot]:
    """Draw all plots of a record that holds at least one run. Needs matplotlib."""
    colours = {name: i for i, name in enumerate(record["arms"])}
    made = [
        _over_tokens(
            record, colours, "Time per token", "ms", "token_ms", "Median of the rounds, token by token."
        ),
        _hit_rate(record, colours),
        _over_tokens(
            record, colours, "Bytes from storage", "MiB", "storage_bytes",
            "What the kernel read for the process, per token, page faults included.", MIB,
        ),
        _memory(record, colours),
        _power(record, colours),
        _against_cache(record, colours),
    ]  # fmt: skip
    return [*made, *_heat_maps(record)]


def sequence(runs: Sequence[dict[str, Any]], name: str) -> Floats:
    """Line up a figure over the tokens of all prompts: the median of the rounds."""
    rows = [
        np.concatenate([np.array(each["tokens"][name], np.float64) for each in run["prompts"]])
        for run in runs
    ]
    return np.asarray(np.median(np.stack(rows), axis=0), np.float64)


def _over_tokens(
    record: dict[str, Any],
    colours: dict[str, int],
    heading: str,
    unit: str,
    name: str,
    note: str,
    scale: float = 1,
) -> Plot:
    series = [
        Series(arm, colours[arm], _points(sequence(runs, name) / scale))
        for arm, runs in _by_arm(record, name)
    ]
    return Plot(heading, note, line_chart(heading, "token", unit, series) if series else "")


def _hit_rate(record: dict[str, Any], colours: dict[str, int]) -> Plot:
    heading = "Hit rate"
    series = []
    for arm, runs in _by_arm(record, "hits"):
        hits, misses = sequence(runs, "hits"), sequence(runs, "misses")
        used = _moving(hits + misses)
        rate = 100 * _moving(hits) / np.where(used > 0, used, 1)
        series.append(Series(arm, colours[arm], _points(rate)))
    note = f"Experts found in the cache, over {_HIT_WINDOW} tokens."
    if not series:
        return Plot(heading, "No arm has an expert cache.", "")
    return Plot(heading, note, line_chart(heading, "token", "%", series, top=100))


def _memory(record: dict[str, Any], colours: dict[str, int]) -> Plot:
    limit = record["settings"]["limits"]["memory_bytes"]
    level = None if limit is None else ("limit", limit / MIB)
    series = [
        Series(arm, colours[arm], _points(sequence(runs, "memory_bytes") / MIB))
        for arm, runs in _by_arm(record, "memory_bytes")
    ]
    boxed = record["box"].startswith("cgroup")
    note = "In use, page cache included." if boxed else "Resident size of the process."
    return Plot("Memory", note, line_chart("Memory", "token", "MiB", series, level=level))


def _power(record: dict[str, Any], colours: dict[str, int]) -> Plot:
    series, drawn = [], set()
    for run in record["runs"]:
        watts = run.get("watts") or []
        if watts and run["arm"] not in drawn:
            drawn.add(run["arm"])
            points = [(float(seconds), float(value)) for seconds, value in watts]
            series.append(Series(run["arm"], colours[run["arm"]], points))
    if not series:
        return Plot("Power", "Not measured: no power sensor that can be read here.", "")
    note = "Whole board, or what the sensor covers; first round, loading included."
    return Plot("Power", note, line_chart("Power", "s", "W", series))


def _against_cache(record: dict[str, Any], colours: dict[str, int]) -> Plot:
    heading = "Time per token against cache size"
    groups: dict[tuple[Any, ...], list[tuple[float, dict[str, float], str]]] = {}
    for run in record["runs"]:
        arm = record["arms"][run["arm"]]
        budget = run["about"].get("cache", {}).get("budget_bytes")
        if budget is None:
            continue
        key = (arm["policy"], arm["routers"], arm["threads"], arm["bits"], str(arm["options"]))
        row = (budget / MIB, record["summary"][run["arm"]]["tpot_ms"], run["arm"])
        if row[2] not in [each[2] for each in groups.setdefault(key, [])]:
            groups[key].append(row)
    if not groups:
        return Plot(heading, "No arm has an expert cache.", "")
    series = []
    for rows in groups.values():
        rows.sort(key=lambda row: row[0])
        series.append(
            Series(
                rows[0][2], colours[rows[0][2]],
                [(size, tpot["median"]) for size, tpot, _ in rows],
                [(size, tpot["low"], tpot["high"]) for size, tpot, _ in rows],
                dots=True,
            )
        )  # fmt: skip
    stock = [
        (name, figures["tpot_ms"]["median"])
        for name, figures in record["summary"].items()
        if record["arms"][name]["kind"] != "stream"
    ]
    level = min(stock, key=lambda each: each[1]) if stock else None
    note = "Bars: 95 % bootstrap. The dashed line is stock, which has no such cache."
    chart = line_chart(heading, "cache, MiB", "ms", series, level=level)
    return Plot(heading, note, chart)


def _heat_maps(record: dict[str, Any]) -> list[Plot]:
    made = []
    for arm, runs in _by_arm(record, "layer_misses"):
        rows = [
            np.concatenate([np.array(each["tokens"]["layer_misses"]) for each in run["prompts"]])
            for run in runs
        ]
        misses = np.mean(np.stack(rows).astype(np.float64), axis=0)  # [token, layer]
        pieces = np.array_split(misses, min(_HEAT_COLUMNS, len(misses)))
        columns = np.stack([piece.mean(axis=0) for piece in pieces])
        heading = f"Misses by layer: {arm}"
        note = f"Tokens run to the right; the darkest is {columns.max():.1f} misses a token."
        chart = heat_map(heading, "token", "layer", columns.T.tolist())
        made.append(Plot(heading, note, chart))
    return made


def _by_arm(record: dict[str, Any], name: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """List the arms whose tokens have a figure, with their runs."""
    found = []
    for arm in record["arms"]:
        runs = [run for run in record["runs"] if run["arm"] == arm]
        if runs and name in runs[0]["prompts"][0]["tokens"]:
            found.append((arm, runs))
    return found


def _points(values: Floats) -> list[tuple[float, float]]:
    """Place values at 1, 2, ...; long rows in means, so that a page stays small."""
    pieces = np.array_split(values, min(len(values), _MOST_POINTS))
    ends = np.cumsum([len(piece) for piece in pieces])
    return [
        (float(end), round(float(piece.mean()), 4)) for end, piece in zip(ends, pieces, strict=True)
    ]


def _moving(values: Floats) -> Floats:
    sums = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(1, len(values) + 1)
    return np.asarray(sums[at] - sums[np.maximum(at - _HIT_WINDOW, 0)], np.float64)
