#!/usr/bin/env python3
"""Slow and unsteady networks and starts, with real workers: targets missed with and without hedging.

    python tools/remote_experiments/networks_real.py -o docs/results/remote-networks-real.json

A relay before each of two workers delays every piece of a frame, each way, by DELAY with a spread of
JITTER in logarithms. Without hedging a late answer is waited for up to three seconds; with it storage is
asked once an answer is later than 95 of 100 were. Then functions that start late, by a drawn time: how
many tokens came before they were there, and whether any was late for it. A token that takes longer than
`--slo` misses. With `--seconds` a call ends after so long, and the same command goes on (its exit code
is 75).
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pieces import Pieces, in_pieces
from remoe_edge.deploy.deploying import WorkerSizes
from remoe_edge.deploy.leases import Leases
from remoe_edge.deploy.packing import Function
from remoe_edge.deploy.record import Deployment, Ray
from remoe_edge.engine.engine import Engine
from remoe_edge.errors import RemoeError
from remoe_edge.files.models import shipped_model
from remoe_edge.placement.latency_curve import by_processors, curve
from remoe_edge.placement.planner import Options, Placement, place
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.request import Slo, Workload
from remote_experiments.real import (
    LocalFunctions,
    Model,
    Relays,
    answer,
    interval,
    prompts_of,
    until_serving,
    workers,
)
from remote_experiments.setting import keep, request, shape, skewed

NETWORKS = ((0.0, 0.0), (0.2, 0.0), (0.2, 1.0), (1.0, 1.0), (2.5, 1.0), (2.5, 2.0))
STARTS = ((0.0, 0.0), (2.0, 0.0), (2.0, 1.0), (5.0, 1.0))


def engine(model: Model, options: argparse.Namespace, **settings: Any) -> Engine:
    """Make an engine that keeps a share of the experts."""
    n_local = round(options.local * model.n_layers * model.n_experts)
    cache = str(WorkerSizes(model.path).main_cache_bytes(n_local))
    return Engine(
        model.path, cache=cache, n_ctx=512, threads=options.threads, prefetch="off", **settings
    )


def over_network(
    model: Model, options: argparse.Namespace, delay_ms: float, jitter: float, hedge: bool
) -> dict[str, Any]:
    """Run the prompts over one network, hedged or not."""
    halves = [model.every_expert()[at::2] for at in (0, 1)]
    relays = Relays(delay_ms, jitter, options.seed)
    try:
        with workers(model, halves) as running:
            addresses = [relays.before(each.address) for each in running]
            with engine(model, options, peers=addresses, hedge=hedge) as made:
                until_serving(made, 2)
                prompts = prompts_of(made, options.text, options.prompts, 8)
                answer(made, prompts[0], options.tokens)
                before = made.stats().remote or {}
                timed = []
                for each in prompts:
                    made.reset()
                    timed.append(answer(made, each, options.tokens))
                after = made.stats().remote or {}
    finally:
        relays.close()
    times = [ms for each in timed for ms in each.token_ms]
    return {
        "delay_ms": delay_ms, "jitter": jitter, "hedge": hedge,
        "tpot_ms": interval([each.tpot_ms for each in timed]),
        "p50_ms": float(np.quantile(times, 0.5)), "p99_ms": float(np.quantile(times, 0.99)),
        "worst_ms": float(max(times)), "slo_missed": float(np.mean(np.asarray(times) > options.slo)),
        "tokens": [each.tokens for each in timed],
        **{name: after[name] - before[name] for name in
           ("remote_asked", "remote_experts", "remote_hedges", "remote_late", "remote_lost")},
    }  # fmt: skip


def over_networks(
    model: Model, options: argparse.Namespace, pieces: Pieces
) -> list[dict[str, Any]]:
    """Run the same prompts over each network, hedged and not; bits have to agree."""
    rows, expected = [], None
    for delay_ms, jitter in NETWORKS[: options.networks]:
        for hedge in (True, False):
            name = f"{delay_ms} ms ± {jitter}, {'hedged' if hedge else 'not hedged'}"
            row = dict(
                pieces.get(name, partial(over_network, model, options, delay_ms, jitter, hedge))
            )
            tokens = row.pop("tokens")
            expected = tokens if expected is None else expected
            rows.append({**row, "same_tokens": tokens == expected})
            print(f"{name}: TPOT {row['tpot_ms']['mean']:.1f} ms, p99 {row['p99_ms']:.1f}, missed "
                  f"{row['slo_missed']:.1%}, hedges {row['remote_hedges']} of {row['remote_asked']}",
                  flush=True)  # fmt: skip
    return rows


def functions_of(
    model: Model, options: argparse.Namespace
) -> tuple[tuple[Function, ...], Placement]:
    """Place a share of the experts here, and the rest on two functions."""
    made = request(
        Slo(1e9, 1e9), Workload(8, options.tokens), shape(model.n_layers, model.n_experts, 4)
    )
    table = load_prices("lifetime")
    shares = skewed(model.n_layers, model.n_experts, np.random.default_rng(options.seed))
    made_curve = curve(by_processors("worker", table.function, 0.02), stepwise=True)
    n_local = round(options.local * model.n_experts)
    placement = place(made, table, made_curve, shares, Options(n_local=n_local))
    local = {
        layer * model.n_experts + expert
        for layer, experts in enumerate(placement.local)
        for expert in experts
    }
    remote = sorted(set(model.every_expert()) - local)
    return tuple(
        Function(f"f{at}", tuple(remote[at::2]), 1 << 28, 1, 1, 10.0) for at in (0, 1)
    ), placement


def after_start(
    model: Model, options: argparse.Namespace, start_s: float, sigma: float
) -> dict[str, Any]:
    """Answer one prompt while functions start, and once more when they are there."""
    functions, placement = functions_of(model, options)
    holder = LocalFunctions(model, functions, start_s=start_s, sigma=sigma, seed=options.seed)
    deployed = Deployment("local", str(model.path), "", Ray(""), functions, placement, 1)
    leases = Leases(deployed, holder, keep_s=1e9, least_rows=0.0)
    with engine(model, options, functions=leases) as running:
        prompt = prompts_of(running, options.text, 1, 8)[0]
        begin = time.monotonic()
        first = answer(running, prompt, options.tokens)
        took_s = time.monotonic() - begin
        while not leases.ready():
            time.sleep(0.02)
        until_serving(running, 2)
        ready_s = time.monotonic() - begin
        running.reset()
        second = answer(running, prompt, options.tokens)
    return {
        "start_s": start_s, "sigma": sigma, "ttft_ms": first.ttft_ms,
        "answer_s": took_s, "ready_s": ready_s,
        "tokens_before": len(first.token_ms) if took_s < ready_s else None,
        "cold_tpot_ms": first.tpot_ms, "warm_tpot_ms": second.tpot_ms,
        "slo_missed": float(np.mean(np.asarray(first.token_ms) > options.slo)),
        "tokens": [first.tokens, second.tokens],
    }  # fmt: skip


def after_starts(model: Model, options: argparse.Namespace, pieces: Pieces) -> list[dict[str, Any]]:
    """Let functions start late, each after a drawn time."""
    rows, expected = [], None
    for start_s, sigma in STARTS[: options.starts]:
        row = dict(
            pieces.get(
                f"starts of {start_s} s ± {sigma}",
                partial(after_start, model, options, start_s, sigma),
            )
        )
        first, second = row.pop("tokens")
        expected = first if expected is None else expected
        rows.append({**row, "same_tokens": first == expected == second})
        print(f"starts of {start_s} s ± {sigma}: TTFT {row['ttft_ms']:.0f} ms, cold "
              f"{row['cold_tpot_ms']:.1f} ms a token, warm {row['warm_tpot_ms']:.1f}, functions after "
              f"{row['ready_s']:.1f} s", flush=True)  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run both."""
    parser = argparse.ArgumentParser(prog="networks_real.py", description="Delay and hedge.")
    parser.add_argument("model", type=Path, nargs="?", default=shipped_model())
    parser.add_argument("--text", type=Path, default=Path(__file__).with_name("prompts.txt"))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--local", type=float, default=0.25)
    parser.add_argument("--slo", type=float, default=50.0, help="milliseconds of a token")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", type=int, default=len(NETWORKS))
    parser.add_argument("--starts", type=int, default=len(STARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="end after so long; the next call goes on")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    model = Model(options.model)
    settings = {
        "model": options.model.name, "slo_ms": options.slo, "local": options.local,
        "prompts": options.prompts, "tokens": options.tokens, "threads": options.threads,
        "seed": options.seed,
    }  # fmt: skip
    try:
        with in_pieces(options.out, settings, options.seconds) as pieces:
            networks = over_networks(model, options, pieces)
            starts = after_starts(model, options, pieces)
            same = all(row["same_tokens"] for row in [*networks, *starts])
            keep({**settings, "networks": networks, "starts": starts, "same_tokens": same,
                  "disturbed": pieces.disturbed()}, options.out)  # fmt: skip
    except RemoeError as error:
        raise SystemExit(str(error)) from error
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
