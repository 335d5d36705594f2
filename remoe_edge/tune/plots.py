"""Pictures of a run and of a comparison; they need matplotlib (extra `[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remoe_edge.files.pictures import drawn_name, pyplot, save


def _axes(rows: int, columns: int, size: tuple[float, float]) -> Any:
    return pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw a run's terms over its steps."""
    names = [
        n
        for n in ("ce", "kl", "eor", "miss", "overlap", "reuse", "smooth", "lag", "ws", "distill")
        if any(n in report for report in history)
    ]
    figure, axes = _axes((len(names) + 2) // 3, 3, (12, 3 * ((len(names) + 2) // 3)))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot([r["step"] for r in history], [r[name] for r in history], linewidth=1)
        axis.set_title(
            {
                "ce": "CE, nats",
                "kl": "KL to the reference router, nats",
                "eor": "EOR",
                "miss": "soft misses / choices",
            }.get(name, name)
        )
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    save(figure, path, dpi=120)


def _point(name: str, summary: Mapping[str, Any], policy: str) -> dict[str, Any]:
    whole = summary.get("all") or next(iter(summary.values()))
    return {
        "name": name,
        "group": name.rstrip("0123456789.").rstrip("-_") or name,
        "misses": whole["change_percent"]["misses_per_token"][policy]["value"],
        "perplexity": whole["change_percent"]["perplexity"]["value"],
        "worst": max(s["change_percent"]["perplexity"]["value"] for s in summary.values()),
    }


def draw_pareto(
    summaries: Mapping[str, Mapping[str, Any]], path: Path, policy: str = "lru@0.25"
) -> None:
    """Draw misses per token against perplexity, relative to the base, one point per set of routers.

    `summaries`: by name, what `measure.summarise` says of the routers compared with the base. Names
    that differ in a number at their end make one curve.
    """
    points = [_point(name, summary, policy) for name, summary in summaries.items()]
    figure, axes = _axes(1, 1, (8, 5.5))
    axis = axes[0][0]
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault(point["group"], []).append(point)
    for name, members in groups.items():
        members = sorted(members, key=lambda p: p["perplexity"])
        line = axis.plot(
            [p["perplexity"] for p in members],
            [p["misses"] for p in members],
            "o-",
            label=drawn_name(name),
            linewidth=1,
            markersize=5,
        )
        axis.plot(
            [p["worst"] for p in members],
            [p["misses"] for p in members],
            "|",
            color=line[0].get_color(),
            markersize=8,
        )
        for point in members:
            axis.annotate(
                drawn_name(str(point["name"])),
                (point["perplexity"], point["misses"]),
                fontsize=7,
                xytext=(4, 3),
                textcoords="offset points",
            )
    axis.plot([0], [0], "k*", markersize=10, label="base")
    axis.axvline(1.0, color="grey", linestyle=":", linewidth=1)
    axis.set_xlabel("held-out perplexity against base, % (bar: worst domain)")
    axis.set_ylabel(f"misses per token against base, % ({policy})")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path, dpi=130)
