#!/usr/bin/env python3
"""Time every stage of the planner, from 48 × 128 to 64 × 512 experts. Processor time, not wall time.

python tools/remote_experiments/time_planner.py -o docs/results/remote-planner-time.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from remoe_edge.placement import planner as stages
from remoe_edge.placement.activation import activation_matrix
from remoe_edge.placement.functions import groups, load
from remoe_edge.placement.memory import MemoryProblem
from remoe_edge.placement.planner import Options, memory_problem, place, solve
from remoe_edge.placement.pre_allocation import Fastest, pre_allocate
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.replicas import add_replicas
from remoe_edge.placement.request import Request, Slo, Workload
from remoe_edge.placement.schedule import longest_first
from remoe_edge.placement.sizes import by_sizes
from remoe_edge.placement.times import Timing
from remoe_edge.placement.utility import split, utility
from remote_experiments.setting import cpu_s, keep, measured, request, shape, skewed

_SHAPES = ((48, 128), (64, 256), (64, 512))
_PAST, _ALPHA = 1024, 15  # past prompts kept, and how many are averaged


def binding(problem: MemoryProblem) -> MemoryProblem:
    """Tighten both limits half-way from the cheapest answer to the fastest, so that they bind."""
    bare = replace(
        problem,
        ttft_offset_ms=np.zeros(len(problem.low)),
        tpot_offset_ms=np.zeros(len(problem.low)),
    )
    free = by_sizes(bare, np.arange(1, 161) * float(64 << 20))
    assert free is not None
    ttft, tpot = (
        float(time(free.y).sum() + time(bare.high).sum()) / 2
        for time in (bare.ttft_ms, bare.tpot_ms)
    )
    return replace(bare, ttft_room_ms=ttft, tpot_room_ms=tpot)


def once(n_layers: int, n_experts: int, per_function: int | None, seed: int) -> dict[str, Any]:
    """Run the stages one by one, then the whole."""
    rng = np.random.default_rng(seed)
    made = shape(n_layers, n_experts)
    table = load_prices("paper")
    curve = measured(table)
    work = Workload(256, 256)
    asked = request(Slo(), work, made)
    matrix = skewed(n_layers, n_experts, rng, 0.7)
    seconds: dict[str, float] = {}
    past = rng.random((64, n_layers, n_experts)).astype(np.float16)
    weights = np.full(_ALPHA, 1 / _ALPHA)
    summaries = rng.random((_PAST, 2048)).astype(np.float32)
    query = rng.random(2048).astype(np.float32)

    def predict() -> Any:
        near = np.argsort(-(summaries @ query))[:_ALPHA] % len(past)
        return np.tensordot(weights, past[near].astype(np.float32), axes=1)

    predict()  # numpy's threads start
    seconds["SPS, 1024 past prompts"], _ = cpu_s(predict)
    seconds["activation matrix"], shares = cpu_s(
        lambda: activation_matrix(matrix, n_layers, n_experts)
    )
    fastest = Fastest(float(curve(table.function.sizes()[-1])), 8, table.function.payload_bytes)
    walked = Request(made, asked.speed, asked.link, Slo(1e5, 1e9), work)
    seconds["MMP"], _ = cpu_s(lambda: pre_allocate(walked, fastest, table.main.max_bytes))
    seconds["utility"], rated = cpu_s(lambda: utility(shares, work, made.top_k))
    local = split(rated, n_experts // 4)
    seconds["groups"], found = cpu_s(lambda: groups(~local, rated, per_function))
    loads = [load(each, shares, made, work) for each in found]
    seconds["times"], timing = cpu_s(lambda: Timing(asked, shares, local, found, loads))
    z, best = [1] * len(found), [float(curve(table.function.sizes()[-1]))] * len(found)
    least = [each.bytes(made, stages.FUNCTION_OVERHEAD_BYTES) for each in found]
    sizes = np.asarray(table.function.sizes(), np.float64)
    problem = memory_problem(timing, table, curve, least, float(sizes[-1]), z, made.main_bytes(32))
    seconds["memory by sizes"], _ = cpu_s(lambda: solve(binding(problem), sizes))
    smooth = binding(replace(problem, curve=measured(table, stepwise=False)))
    seconds["memory by Lagrangian"], _ = cpu_s(lambda: solve(smooth, sizes))
    jobs = [each.prompt_rows for each in loads]
    seconds["LPT of every function, z = 8"], _ = cpu_s(
        lambda: [longest_first(each, 8) for each in jobs]
    )
    faster = timing.times(best, [8] * len(found))
    close = Slo(ttft_ms=faster.ttft_ms * 1.1)
    seconds["replicas until the target holds"], grown = cpu_s(
        lambda: add_replicas(timing, best, close, 8)
    )
    seconds["all stages"], _ = cpu_s(
        lambda: place(
            Request(made, asked.speed, asked.link, Slo(1e5, 1e9), work), table, curve, matrix,
            Options(per_function, n_local=n_experts // 4),
        )
    )  # fmt: skip
    return {
        "seconds": seconds,
        "functions": len(found),
        "replicas": None if grown is None else sum(grown),
    }


def main(arguments: list[str] | None = None) -> int:
    """Time all shapes, three times each; report medians."""
    parser = argparse.ArgumentParser(prog="time_planner.py", description="Time the planner.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for n_layers, n_experts in _SHAPES:
        for per_function in (None, 16, 3):
            runs = [once(n_layers, n_experts, per_function, seed) for seed in range(options.rounds)]
            row = {
                "layers": n_layers,
                "experts": n_experts,
                "experts_per_function": per_function,
                "functions": runs[0]["functions"],
                "replicas": [run["replicas"] for run in runs],
                "cpu_seconds": {
                    name: statistics.median(run["seconds"][name] for run in runs)
                    for name in runs[0]["seconds"]
                },
            }
            rows.append(row)
            print(f"{n_layers} × {n_experts}, {row['functions']} functions:", flush=True)
            for name, seconds in row["cpu_seconds"].items():
                print(f"  {name}: {1000 * seconds:.2f} ms")
    note = (
        "Processor time of this process, all threads; the machine had other work at the same time."
    )
    keep({"note": note, "rounds": options.rounds, "rows": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
