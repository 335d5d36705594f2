"""The training loss as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def draw_losses(history: list[dict[str, float]], path: Path, say: Callable[[str], None]) -> None:
    """Draw nats per token over million tokens, a line for each stage; say so if it cannot be."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no picture of the losses: it needs matplotlib (pip install matplotlib)")
        return
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for stage in ("base", "chat"):
        rows = [h for h in history if h["stage"] == stage]
        if rows:
            axes.plot([h["tokens"] / 1e6 for h in rows], [h["loss"] for h in rows], label=stage)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("training loss, nats per token")
    axes.set_ylim(top=min(6.0, max(h["loss"] for h in history)) if history else None)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=140)
