"""Set one record against another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from remoe_edge.bench import summary
from remoe_edge.bench.record import is_number
from remoe_edge.bench.table import span
from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

# Of the model; the file's name may be another.
_SAME_MODEL = ("fingerprint", "architecture", "file_bytes", "types")
_BOUNDS = ("median", "low", "high")
_FIGURES = ("tpot_ms", "p50_ms", "p90_ms", "p99_ms", "ttft_ms", "first_token_ms", "load_ms")


def compare(a: dict[str, Any], b: dict[str, Any], a_name: str, b_name: str) -> dict[str, Any]:
    """Compare the arms that two records share; ratios are a over b, so that above 1 means b is faster.

    `apart` says whether the intervals do not touch. Raises InputError for records of different models,
    or without an arm in common; other differences are told under "differences".
    """
    for name in _SAME_MODEL:
        mine, theirs = a["model"].get(name), b["model"].get(name)
        if mine != theirs:
            raise InputError(
                f"{a_name} and {b_name} are of different models: {name} {mine} against {theirs}"
            )
    one, other = _summary(a, a_name), _summary(b, b_name)
    shared = [name for name in one if name in other]
    if not shared:
        raise InputError(
            f"no arm is in both: {a_name} has {', '.join(one) or 'none'}, "
            f"{b_name} has {', '.join(other) or 'none'}"
        )
    arms: dict[str, dict[str, Any]] = {}
    for name in shared:
        arms[name] = {figure: _pair(one[name][figure], other[name][figure]) for figure in _FIGURES}
        arms[name]["disturbed_rounds"] = [
            one[name]["disturbed_rounds"], other[name]["disturbed_rounds"],
        ]  # fmt: skip
    return {
        "a": a_name,
        "b": b_name,
        "differences": _differences(a, b, one, other),
        "arms": arms,
    }


def table(found: dict[str, Any]) -> Table:
    """Make a table of the times of a token and the first token."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE, title=f"A: {found['a']}\nB: {found['b']}", title_justify="left")
    made.add_column("arm", no_wrap=True)
    for heading in ("A, ms/token", "B, ms/token", "A / B", "", "A, TTFT ms", "B, TTFT ms", "A / B"):
        made.add_column(heading, justify="right", no_wrap=True)
    for name, figures in found["arms"].items():
        speed, first = figures["tpot_ms"], figures["ttft_ms"]
        star = " *" if any(figures["disturbed_rounds"]) else ""
        made.add_row(
            name + star,
            span(speed["a"]),
            span(speed["b"]),
            f"{speed['ratio']:.2f}",
            "" if speed["apart"] else "intervals touch",
            span(first["a"], 0),
            span(first["b"], 0),
            f"{first['ratio']:.2f}",
        )
    return made


def _pair(a: dict[str, float], b: dict[str, float]) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "ratio": a["median"] / b["median"] if b["median"] else math.nan,
        "apart": a["low"] > b["high"] or b["low"] > a["high"],
    }


def _summary(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Give the figures of each arm. Raises InputError where there are others than everybody writes."""
    try:
        # A run that was killed had no time to summarise.
        found: dict[str, Any] = record["summary"] or summary.summarise(record)
        for figures in found.values():
            bounds = [figures[each][bound] for each in _FIGURES for bound in _BOUNDS]
            if not all(map(is_number, [*bounds, figures["disturbed_rounds"]])):
                raise ValueError
    except Exception as error:  # whatever reading what somebody made up may raise
        raise InputError(f"{name} is a damaged record: its figures cannot be read") from error
    return found


def _differences(
    a: dict[str, Any], b: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> list[str]:
    lines = []
    for part in ("machine", "software", "settings", "read_ahead", "page_cache", "box", "prompts"):
        lines += _lines(part, a[part], b[part])
    lines += _lines("memory touched before", *(bool(each.get("touched_bytes")) for each in (a, b)))
    for name, mine in a["arms"].items():
        if name in b["arms"]:
            lines += _lines(f"arm {name}", mine, b["arms"][name])
    picks = [(each["storage"]["probe"] or {}).get("pick", {}) for each in (a, b)]
    speeds = [round(pick["mib_per_s"]) if pick else None for pick in picks]
    lines += _lines("storage, MiB/s", *speeds)
    for label, mine, theirs in (("A", one, other), ("B", other, one)):
        lines += [f"only {label} has the arm {name}" for name in mine if name not in theirs]
    for label, record in (("A", a), ("B", b)):
        if not record["complete"]:
            lines.append(f"{label} is not complete: {record['ended']}")
        if record["differs"]:
            lines.append(f"{label} failed: {record['differs']['line']}")
        disturbed = sum(bool(run["marks"]) for run in record["runs"])
        if disturbed:
            lines.append(f"{label}: {disturbed} of {len(record['runs'])} runs were disturbed")
    return lines


def _lines(where: str, a: Any, b: Any) -> list[str]:
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        names = list(dict.fromkeys([*a, *b]))
        return [
            line for name in names for line in _lines(f"{where}: {name}", a.get(name), b.get(name))
        ]
    if isinstance(a, list) and isinstance(b, list):
        return [f"{where} differ"]
    return [f"{where}: {a} against {b}"]
