#!/usr/bin/env python3
"""What each part of the planner is worth: without SPS, MMP, the Lagrangian, replicas. On the simulator.

    python tools/remote_experiments/without_parts.py MODEL.gguf TEXT.txt … -o docs/results/x.json

Prompts are cut from the texts and routed by the model itself, as tools/similar_prompts does; past
prompts come from the first parts. Every judged prompt gets a placement of its own from what is
predicted of it. The routing is the small model's, sizes and speeds are `setting.py`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "test_models"))
from remoe_edge.errors import BudgetError, RemoeError
from remoe_edge.placement.activation import Floats, even
from remoe_edge.placement.latency_curve import curve
from remoe_edge.placement.planner import Options, Placement, place
from remoe_edge.placement.price import PriceTable
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.request import Request, Slo, Workload
from remoe_edge.predict.embeddings import TokenEmbeddings
from remoe_edge.predict.predictor import SimilarPrompts
from remoe_edge.predict.similarity import summary
from remoe_edge.predict.store import PromptStore, activation
from remote_experiments.setting import keep, measured, points, request, shape
from remote_experiments.simulate_placements import mask_of
from remote_experiments.simulator.memory import Placed
from remote_experiments.simulator.run import simulate
from remote_experiments.simulator.world import Arrival, World
from similar_prompts.evaluate_sps import Prompt, overhear

Predict = Callable[[Prompt], npt.NDArray[np.floating]]
Resize = Callable[[Placement], Placement]


def predictors(
    options: argparse.Namespace, past: list[Prompt], n_experts: int
) -> dict[str, Predict]:
    """Make the ways of predicting a prompt's experts."""
    n_layers = len(past[0].prompt)
    embeddings = TokenEmbeddings(options.model)
    store = PromptStore(n_layers, n_experts)
    for each in past:
        whole = np.concatenate([each.prompt, each.answer], 1)
        store.add(summary(each.tokens, embeddings), activation(whole, n_experts))
    similar = SimilarPrompts(store, embeddings, sharpness=options.sharpness)
    frequency = np.mean(np.asarray(store.activations, np.float64), axis=0)
    flat = even(n_layers, n_experts)

    def truth(prompt: Prompt) -> Floats:
        whole = np.concatenate([prompt.prompt, prompt.answer], 1)
        return np.asarray(activation(whole, n_experts), np.float64)

    return {
        "SPS": lambda prompt: similar.predict(prompt.tokens),
        "frequency": lambda prompt: frequency,
        "even": lambda prompt: flat,
        "oracle": truth,
    }


def run(placement: Placement, prompt: Prompt) -> dict[str, float]:
    """Simulate one prompt alone, everything warm, with the true T(y)."""
    mask = mask_of(placement)
    true = curve(points(placement.table), stepwise=True)
    row_ms = tuple(float(true(each.memory_bytes)) for each in placement.functions)
    routed = np.concatenate([prompt.prompt, prompt.answer], 1).astype(np.int64)
    found = simulate(
        World(placement, lambda: Placed(mask), row_ms=row_ms, always_on=True),
        [Arrival(0.0, routed, prompt.prompt.shape[1])],
    )
    (served,) = found.served
    slo = placement.request.slo
    return {
        "cost": found.bill.total,
        "ttft_ms": served.ttft_ms,
        "tpot_ms": served.tpot_ms,
        "missed": not slo.holds(served.tpot_ms, served.ttft_ms),
        "remote_rows": found.missing,
        "main_bytes": placement.main_bytes,
    }


def resized(n_bytes: int) -> Resize:
    """Give all functions one size instead of the planner's."""

    def change(placement: Placement) -> Placement:
        sizes = placement.table.function.sizes(n_bytes)
        functions = []
        for each in placement.functions:
            least = each.group.bytes(placement.request.shape, 64 << 20)
            size = max(sizes[0], placement.table.function.sizes(least)[0])
            functions.append(replace(each, memory_bytes=size))
        return replace(placement, functions=tuple(functions))

    return change


def cases(n_experts: int, largest: int) -> dict[str, tuple[str, Options, Resize | None]]:
    """List what is left out: the prediction, the options, and a change of what was placed."""
    quarter, half = n_experts // 4, n_experts // 2
    whole = Options(n_local=quarter)
    return {
        "all parts": ("SPS", whole, None),
        "without SPS: frequency": ("frequency", whole, None),
        "without SPS: even": ("even", whole, None),
        "instead of SPS: oracle": ("oracle", whole, None),
        "memory by MMP": ("SPS", Options(), None),
        "without MMP: half local": ("SPS", Options(n_local=half), None),
        "without MMP: all local": ("SPS", Options(n_local=n_experts), None),
        "without Lagrangian: largest": ("SPS", whole, resized(largest)),
        "without Lagrangian: smallest": ("SPS", whole, resized(1)),
        "without replicas": ("SPS", replace(whole, most_replicas=1), None),
        "nothing local": ("SPS", Options(n_local=0), None),
        "nothing local, without replicas": ("SPS", Options(n_local=0, most_replicas=1), None),
    }


def judge(
    asked: Request, table: PriceTable, ways: dict[str, Predict], judged: list[Prompt]
) -> list[dict[str, Any]]:
    """Run every case on every judged prompt."""
    t, rows = measured(table), []
    largest = table.function.sizes()[-1]
    for name, (way, options, change) in cases(asked.shape.n_experts, largest).items():
        found: list[dict[str, float]] = []
        unplaced, error = 0, ""
        for prompt in judged:
            try:
                placement = place(asked, table, t, ways[way](prompt), options)
            except BudgetError as out_of_reach:
                unplaced, error = unplaced + 1, str(out_of_reach)
                continue
            found.append(run(change(placement) if change else placement, prompt))
        row: dict[str, Any] = {"case": name, "prices": table.name, "prompts": len(found)}
        row |= {"unplaced": unplaced, "error": error}
        if found:
            row |= {key: float(np.mean([each[key] for each in found])) for key in found[0]}
            cost = np.asarray([each["cost"] for each in found])
            row["cost_sem"] = float(cost.std(ddof=1) / len(cost) ** 0.5)
            print(f"{name} ({table.name}, TTFT ≤ {asked.slo.ttft_ms:.0f}): cost {row['cost']:.4g}, "
                  f"TTFT {row['ttft_ms']:.0f}, TPOT {row['tpot_ms']:.1f} ms, missed "
                  f"{row['missed']:.0%}, remote {row['remote_rows']:.0f}", flush=True)  # fmt: skip
        else:
            print(f"{name}: not placed: {error}", flush=True)
        rows.append({**row, "slo": {"tpot_ms": asked.slo.tpot_ms, "ttft_ms": asked.slo.ttft_ms}})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Route the prompts, predict, place and simulate; errors become one line on stderr."""
    parser = argparse.ArgumentParser(prog="without_parts.py", description="What parts are worth.")
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT.txt")
    parser.add_argument("--prompt", type=int, default=25, help="tokens of a prompt (25)")
    parser.add_argument("--answer", type=int, default=32, help="tokens after it (32)")
    parser.add_argument("--past", type=int, default=40, help="past prompts of a text (40)")
    parser.add_argument("--judged", type=int, default=6, help="judged prompts of a text (6)")
    parser.add_argument("--sharpness", type=float, default=50.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tpot", type=float, default=60.0)
    parser.add_argument("--ttft", type=float, nargs="+", default=[900.0, 450.0])
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        past, judged, n_experts = overhear(options, Console(stderr=True))
        ways = predictors(options, past, n_experts)
        n_layers, _, top_k = judged[0].prompt.shape
        made = shape(n_layers, n_experts, top_k)
        work = Workload(options.prompt, options.answer + 1)
        rows = []
        for name in ("paper", "per-call"):
            for ttft in options.ttft:
                asked = request(Slo(options.tpot, ttft), work, made)
                rows += judge(asked, load_prices(name), ways, judged)
    except RemoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    keep({"shape": vars(made), "past": len(past), "judged": len(judged), "rows": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
