"""What `remoe-edge top` knows of the running engines and plugged programs, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from remoe_edge.engine.counters import METRICS
from remoe_edge.telemetry.families import Family

_TOKENS = (("n_prompt", "prompt_tokens"), ("n_generated", "generated_tokens"))


def families(running: Iterable[Mapping[str, Any]]) -> list[Family]:
    """Give the figures of each of `status.running()`, with the labels `pid` and `model`."""
    counted = [
        Family(f"remoe_edge_{metric}_total", "counter", help_)
        for metric, help_ in [(name, "Tokens of all answers.") for _, name in _TOKENS]
    ]
    counted += [
        Family(f"remoe_edge_{each.metadata['metric']}_total", "counter", each.metadata["help"])
        for each in METRICS
    ]
    budget = Family(
        "remoe_edge_cache_budget_bytes", "gauge", "Bytes that the expert cache may take."
    )
    for engine in running:
        labels = {"pid": str(engine.get("pid")), "model": str(engine.get("model"))}
        totals = engine.get("totals", {})
        values = [totals.get(name) for name, _ in _TOKENS]
        for each in METRICS:
            value = totals.get(each.name)
            in_seconds = value is not None and each.metadata["unit"] == "ms"
            values.append(value / 1000 if in_seconds else value)
        for family, value in zip(counted, values, strict=True):
            family.add(value, **labels)
        budget.add(engine.get("budget_bytes"), **labels)
    return [*counted, budget]
