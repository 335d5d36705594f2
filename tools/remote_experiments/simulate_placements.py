#!/usr/bin/env python3
"""Simulate Remoe's placement against others: cost, times, cold starts, arrivals, slow networks, scale.

    python tools/remote_experiments/simulate_placements.py CODE.npz GENERAL.npz -o docs/results/x.json

Routing is recorded (Qwen3-30B-A3B); what is known of it before is its first half, and requests are cut
from the second. The setting (sizes, speeds, network) is `setting.py`'s. No worker runs here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).resolve().parents[1]))
from remoe_edge.placement.cost import Starts as PlannedStarts
from remoe_edge.placement.latency_curve import curve
from remoe_edge.placement.planner import Options, Placement, cheapest, place
from remoe_edge.placement.price import PriceTable
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.request import Slo, Workload
from remoe_edge.predict.store import activation
from remoe_edge.routing.trace import read_trace
from remote_experiments.setting import STORAGE_BYTES_PER_S, keep, measured, points, request, shape
from remote_experiments.simulator import arrivals
from remote_experiments.simulator.memory import Cached, Placed
from remote_experiments.simulator.routing import Topics, pieces
from remote_experiments.simulator.run import simulate
from remote_experiments.simulator.world import STORAGE, Arrival, Outcome, Starts, World

SLO = Slo(tpot_ms=160, ttft_ms=7000)
STARTS = Starts(
    function_ms=2500, sigma=0.3, main_boot_ms=2000, load_bytes_per_s=STORAGE_BYTES_PER_S,
    keep_ms=60_000,
)  # fmt: skip
PLANNED_STARTS = PlannedStarts(STARTS.function_ms, STARTS.main_boot_ms, STARTS.load_bytes_per_s)
Routed = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def mask_of(placement: Placement) -> Mask:
    """Give the local experts as a mask."""
    made = placement.request.shape
    mask = np.zeros((made.n_layers, made.n_experts), bool)
    for layer, experts in enumerate(placement.local):
        mask[layer, list(experts)] = True
    return mask


def world(placement: Placement, **changed: Any) -> World:
    """Make a world of a placement whose functions are as fast as the points say, not the fit."""
    mask = mask_of(placement)
    true = curve(points(placement.table), stepwise=True)
    row_ms = tuple(float(true(each.memory_bytes)) for each in placement.functions)
    made = World(placement, lambda: Placed(mask), row_ms=row_ms, starts=STARTS, n_hosts=4)
    return replace(made, **changed)


def summary(found: Outcome, slo: Slo = SLO) -> dict[str, Any]:
    """Boil an outcome down."""
    ttft = np.asarray([each.ttft_ms for each in found.served])
    tpot = np.asarray([each.tpot_ms for each in found.served])
    waited = np.asarray([each.waited_ms for each in found.served])
    assert slo.ttft_ms is not None
    assert slo.tpot_ms is not None
    late = ((ttft > slo.ttft_ms) | (tpot > slo.tpot_ms)).mean()
    n = len(found.served)
    return {
        "requests": n,
        "cost_a_request": found.bill.total / n,
        "bill": found.bill.as_dict(),
        "ttft_ms": {"mean": float(ttft.mean()), "p95": float(np.quantile(ttft, 0.95))},
        "tpot_ms": {"mean": float(tpot.mean()), "p95": float(np.quantile(tpot, 0.95))},
        "waited_ms": float(waited.mean()),
        "targets_missed": float(late),
        "calls_a_request": found.calls / n,
        "function_starts": found.function_starts,
        "main_starts": found.main_starts,
        "hedged": found.hedged,
        "missing": found.missing,
    }


def arms(
    table: PriceTable, shares: npt.NDArray[np.floating], truth: npt.NDArray[np.floating],
    work: Workload, seed: int,
) -> dict[str, Callable[[], World]]:  # fmt: skip
    """Make the worlds that are compared; all have the functions' platform and prices in common."""
    made = shape()
    asked, t = request(SLO, work), measured(table)
    at_mmp = place(asked, table, t, shares)
    remoe, _ = cheapest(asked, table, t, shares)
    started, _ = cheapest(asked, table, t, shares, Options(starts=PLANNED_STARTS))
    # Where functions never pay, a quarter of the experts stays local, to see what they would cost.
    n_local = remoe.n_local if remoe.functions else made.n_experts // 4
    chosen = Options(n_local=n_local)
    everything = place(asked, table, t, shares, Options(n_local=made.n_experts))
    remoe = place(asked, table, t, shares, chosen)
    drawn = np.random.default_rng(seed).random(shares.shape)
    random = place(asked, table, t, drawn / drawn.sum(1, keepdims=True), chosen)
    oracle = place(asked, table, t, truth, chosen)
    slots = max(made.top_k, made.n_layers * n_local)

    def fetch() -> World:
        return world(
            everything, memory=lambda: Cached(made.n_layers, made.n_experts, slots, "reuse-biased"),
            missing=STORAGE, storage_bytes_per_s=STORAGE_BYTES_PER_S, main_bytes=remoe.main_bytes,
        )  # fmt: skip

    return {
        "all local": lambda: world(everything),
        "remoe, starts priced in": lambda: world(started),
        "remoe, memory by MMP": lambda: world(at_mmp),
        "remoe": lambda: world(remoe),
        "random placement": lambda: world(random),
        "oracle placement": lambda: world(oracle),
        "remoe, functions start when called": lambda: world(remoe, lease=False),
        "storage, no functions": fetch,
    }


def requests(parts: Sequence[Routed], at: npt.NDArray[np.float64], n_prompt: int) -> list[Arrival]:
    """Give each arrival a recorded piece, in turn."""
    return [
        Arrival(float(time), parts[i % len(parts)], n_prompt) for i, time in enumerate(at.tolist())
    ]


def compare(options: argparse.Namespace, recorded: list[Routed]) -> dict[str, Any]:
    """Run all arms under all prices and arrivals."""
    known = np.concatenate([r[:, : r.shape[1] // 2] for r in recorded], axis=1)
    length = options.prompt + options.answer
    halves = [pieces(r[:, r.shape[1] // 2 :], length) for r in recorded]
    parts = [piece for pair in zip(*halves, strict=False) for piece in pair]
    shares = activation(known, shape().n_experts)
    truth = activation(np.concatenate(parts[: options.requests], axis=1), shape().n_experts)
    work = Workload(options.prompt, options.answer + 1)
    rows = []
    for name in ("paper", "per-call", "lifetime"):
        tables = [load_prices(name)]
        if tables[0].function.request:
            tables.append(tables[0].without_fee())
        for table in tables:
            made = arms(table, shares, truth, work, options.seed)
            several = name != "lifetime" and not table.name.endswith("no fee per call")
            for kind, per_s in options.arrivals[: None if several else 2]:
                rng = np.random.default_rng(options.seed)
                draw = arrivals.KINDS[kind]
                changed = {"day_ms": 600_000.0} if kind == "daily" else {}
                at = draw(options.requests, per_s, rng, **changed)
                for arm, make in made.items():
                    found = simulate(make(), requests(parts, at, options.prompt))
                    row = {
                        "prices": table.name, "arrivals": kind, "per_s": per_s, "arm": arm,
                        **describe(make()), **summary(found),
                    }  # fmt: skip
                    rows.append(row)
                    print(f"{table.name}, {kind} {per_s}/s, {arm}: {row['cost_a_request']:.4g}, TTFT "
                          f"{row['ttft_ms']['mean']:.0f}, TPOT {row['tpot_ms']['mean']:.0f} ms, "
                          f"missed {row['targets_missed']:.0%}", flush=True)  # fmt: skip
    return {"rows": rows, "networks": networks(options, parts, shares, work)}


def describe(made: World) -> dict[str, Any]:
    """Say what an arm holds, and what the plan expects of it."""
    placement = made.placement
    return {
        "n_local": placement.n_local,
        "main_bytes": placement.main_bytes if made.main_bytes is None else made.main_bytes,
        "functions": len(placement.functions),
        "function_bytes": sorted({each.memory_bytes for each in placement.functions}),
        "replicas": sum(each.replicas for each in placement.functions),
        "method": placement.method,
        "planned": {
            "ttft_ms": placement.times.ttft_ms,
            "tpot_ms": placement.times.tpot_ms,
            "cost": placement.bill.total,
            "all_local_cost": placement.all_local.total,
        },
    }


def networks(
    options: argparse.Namespace,
    parts: list[Routed],
    shares: npt.NDArray[np.floating],
    work: Workload,
) -> list[dict[str, Any]]:
    """Let the network and starts vary, with and without hedging, everything warm."""
    table = load_prices("paper")
    placement, _ = cheapest(request(SLO, work), table, measured(table), shares)
    at = np.arange(min(options.requests, 12)) * 1e6
    rows = []
    for trip, jitter in ((0.6, 0.0), (0.6, 1.0), (2.0, 1.0), (5.0, 1.0), (5.0, 2.0)):
        usual = trip * np.exp(1.645 * jitter) + 0.01  # the round trip's 95th percentile
        for hedge in (None, float(usual)):
            found = simulate(
                world(
                    placement, round_trip_ms=trip, jitter=jitter, hedge_ms=hedge, always_on=True,
                    storage_bytes_per_s=STORAGE_BYTES_PER_S, seed=options.seed,
                ),
                requests(parts, at, options.prompt),
            )  # fmt: skip
            row = {"round_trip_ms": trip, "jitter": jitter, "hedge_ms": hedge, **summary(found)}
            rows.append(row)
            print(f"round trip {trip}, jitter {jitter}, hedge {hedge}: TPOT "
                  f"{row['tpot_ms']['mean']:.0f}, p95 {row['tpot_ms']['p95']:.0f}, hedged "
                  f"{row['hedged']} of {row['missing']}", flush=True)  # fmt: skip
    return rows


def scale(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Extrapolate to many functions: made-up routing of 64 layers of up to 512 experts."""
    rows = []
    for n_experts, per_function in ((128, 16), (512, 16), (512, 3), (512, 2)):
        made = shape(64, n_experts)
        topics = Topics(64, n_experts, 8, seed=options.seed)
        rng = np.random.default_rng(options.seed)
        drawn = [topics.draw(i % 8, 24, rng) for i in range(12)]
        table = load_prices("paper")
        asked = request(Slo(1e4, 1e6), Workload(16, 9), made)
        placement = place(
            asked,
            table,
            measured(table),
            topics.shares.mean(0),
            Options(per_function, n_local=n_experts // 4),
        )
        at = arrivals.poisson(len(drawn), 0.2, rng)
        found = simulate(
            world(placement, n_hosts=64),
            [Arrival(float(time), r, 16) for time, r in zip(at, drawn, strict=True)],
        )
        row = {"experts": n_experts, "per_function": per_function, **describe(world(placement)),
               **summary(found, asked.slo)}  # fmt: skip
        del row["function_bytes"]
        rows.append(row)
        print(f"{n_experts} experts, {row['functions']} functions: {row['calls_a_request']:.0f} calls a "
              f"request, TPOT {row['tpot_ms']['mean']:.0f} ms", flush=True)  # fmt: skip
    return rows


def rate(text: str) -> tuple[str, float]:
    """Read poisson:0.1."""
    kind, _, per_s = text.partition(":")
    if kind not in arrivals.KINDS:
        raise argparse.ArgumentTypeError(f"{kind}: one of {', '.join(arrivals.KINDS)}")
    return kind, float(per_s)


def main(arguments: list[str] | None = None) -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="simulate_placements.py", description="Simulate Remoe.")
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE.npz")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--arrivals", type=rate, nargs="+",
        default=[("poisson", 0.2), ("poisson", 0.005), ("bursty", 0.05), ("daily", 0.1)],
    )  # fmt: skip
    parser.add_argument("--scale", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    recorded = [np.asarray(read_trace(path).routed(), np.int64) for path in options.traces]
    found = compare(options, recorded)
    if options.scale:
        found["scale"] = scale(options)
    keep({"slo": {"tpot_ms": SLO.tpot_ms, "ttft_ms": SLO.ttft_ms}, "starts": vars(STARTS), **found},
         options.out)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
