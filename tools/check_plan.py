#!/usr/bin/env python3
"""Compare the planner's predicted time per token with the measured one, at several budgets.

    head -c 4000 heldout/prose.txt > prompt.txt
    remoe-edge trace -m MODEL.gguf --prompts prompt.txt --raw -n 0 -o T
    python tools/check_plan.py MODEL.gguf --trace T --text heldout/prose.txt --skip 2000 -o result.json

Predicts first (computing and storage measured anew), then runs the engine at each budget over the
text, token by token, from a cold page cache where that may be dropped. The trace and what is read
should be of the same kind of text, and of different documents. What a prompt leaves in the cache
takes some tokens to give way to what decoding uses, which `--warm` leaves uncounted. Columns: TPOT
and misses, predicted and measured, and what the latency model alone makes of the measured misses.
Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from remoe_edge import Engine, EngineSettings
from remoe_edge.cli.results import write_json
from remoe_edge.errors import InputError, RemoeError
from remoe_edge.machine.memory import available
from remoe_edge.native import _core
from remoe_edge.plan.choose import without_trace
from remoe_edge.plan.latency import Machine
from remoe_edge.plan.measure import measure_machine
from remoe_edge.plan.misses import MissModel, Replayed, prepare
from remoe_edge.plan.planner import Predictor, Targets
from remoe_edge.plan.report import machine_as_json
from remoe_edge.profile import read_profile
from remoe_edge.routing.simulate import parse_cache
from remoe_edge.routing.trace import read_trace
from typed_command import typed_command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="check_plan.py", description="Predicted against measured time per token."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--text", type=Path, required=True, help="what the engine reads")
    parser.add_argument("--skip", type=int, default=0, help="tokens of the text not read (0)")
    parser.add_argument("--trace", type=Path, help="without it, as `plan` without a trace")
    parser.add_argument("--policy", help="the engine's default")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--budgets", default="15%,30%,45%,60%,80%")
    parser.add_argument("--prompt", type=int, default=128, help="tokens read at once (128)")
    parser.add_argument("--warm", type=int, default=70, help="tokens after it, uncounted (70)")
    parser.add_argument("--tokens", type=int, default=84, help="tokens counted (84)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an engine setting"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args(arguments)


def read(options: argparse.Namespace, engine: Engine) -> tuple[list[int], list[int]]:
    """Take the prompt and the tokens after it from the text."""
    tokens = engine.tokenize(options.text.read_text(encoding="utf-8"), special=True)[options.skip :]
    needed = options.prompt + options.warm + options.tokens
    if len(tokens) < needed or needed > engine.n_ctx:
        raise InputError(
            f"{needed} tokens are to be read; {options.text} has {len(tokens)} after {options.skip}, "
            f"the context {engine.n_ctx}"
        )
    return tokens[: options.prompt], tokens[options.prompt : needed]


def measure(options: argparse.Namespace, cache_bytes: int, policy: str) -> dict[str, float]:
    """Run the engine at one budget over the text."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
    with Engine(
        options.model, cache=str(cache_bytes), policy=policy, threads=options.threads,
        **({"profile": options.profile} if options.profile else {}),
        **dict(each.partition("=")[::2] for each in options.set),
    ) as engine:  # fmt: skip
        prompt, rest = read(options, engine)
        start = time.perf_counter()
        engine.evaluate(prompt)
        first_ms = (time.perf_counter() - start) * 1000
        times = []
        before = engine.counts()
        for i, token in enumerate(rest):
            if i == options.warm:
                before = engine.counts()
            start = time.perf_counter()
            engine.evaluate([token], reset=False)
            engine.llama.sample(temp=0.7, top_k=40, top_p=0.95, min_p=0.05)
            times.append((time.perf_counter() - start) * 1000)
        after = engine.counts()
    counted = times[options.warm :]
    return {
        "tpot_ms": statistics.fmean(counted),
        "median_ms": statistics.median(counted),
        "ttft_ms": first_ms,
        "misses": (after["misses"] - before["misses"]) / len(counted),
        "stall_ms": (after["stall_ns"] - before["stall_ns"]) / 1e6 / len(counted),
        "ffn_ms": (after["ffn_ns"] - before["ffn_ns"]) / 1e6 / len(counted),
    }


def with_misses(machine: Machine, misses: float) -> float:
    """Predict a token's time from a mean number of misses, spread evenly by chance."""
    k, n = machine.sizes.top_k, machine.sizes.n_layers
    share = min(1.0, misses / (k * n))
    row = [math.comb(k, m) * share**m * (1 - share) ** (k - m) for m in range(k + 1)]
    return machine.tpot_ms(np.tile(np.asarray(row), (n, 1)))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Predict, measure, compare."""
    policy = options.policy or EngineSettings.policy
    file = _core.ModelFile.open(str(options.model))
    settings = EngineSettings(threads=options.threads)
    n_ctx = settings.context(file.unsigned(f"{file.architecture}.context_length"))
    measured = measure_machine(
        options.model, settings.replace(n_ctx=n_ctx), memory_bytes=available().available_bytes,
        fresh=True,
    )  # fmt: skip
    machine = measured.machine
    sizes = machine.sizes
    misses: MissModel = without_trace(sizes, policy)
    if options.trace:
        trace = prepare(
            read_trace(options.trace), sizes.n_layers, sizes.n_experts, sizes.top_k,
            sizes.fingerprint,
        )  # fmt: skip
        misses = Replayed(trace, policy, read_profile(options.profile) if options.profile else None)
    predict = Predictor(machine, misses, Targets(n_prompt=options.prompt))
    points = [
        predict(max(sizes.floor_slots, parse_cache(text.strip(), sizes.total_experts)))
        for text in options.budgets.split(",")
    ]
    runs: list[list[dict[str, float]]] = [[] for _ in points]
    # One round after the other, so that what slows the machine for a while does not hit one budget.
    for _ in range(options.rounds):
        for point, done in zip(points, runs, strict=True):
            done.append(measure(options, point.cache_bytes, policy))
    rows = []
    for point, done in zip(points, runs, strict=True):
        found = {key: statistics.median(each[key] for each in done) for key in done[0]}
        row = {
            "share": point.share,
            "cache_bytes": point.cache_bytes,
            "predicted_ms": point.tpot_ms,
            "measured_ms": found["tpot_ms"],
            "error": point.tpot_ms / found["tpot_ms"] - 1,
            "predicted_misses": point.misses,
            "measured_misses": found["misses"],
            "with_measured_misses_ms": with_misses(machine, found["misses"]),
            "predicted_cold_ttft_ms": point.cold_ttft_ms,
            "measured_cold_ttft_ms": found["ttft_ms"],
            "runs": done,
        }
        rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
    return {
        "command": typed_command(),
        "machine": {"cpu": platform.machine(), "kernel": platform.release()},
        "load_average": os.getloadavg(),
        "policy": policy,
        "misses_from": misses.source,
        **machine_as_json(machine),
        "rows": rows,
        "worst_error": max(abs(row["error"]) for row in rows),
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['share']:5.0%}  {row['predicted_ms']:8.1f} predicted  {row['measured_ms']:8.1f} measured "
        f"{row['error']:+7.1%}   misses {row['predicted_misses']:6.2f} / {row['measured_misses']:6.2f}"
        f"   {row['with_measured_misses_ms']:8.1f} with those   TTFT "
        f"{row['predicted_cold_ttft_ms']:7.0f} / {row['measured_cold_ttft_ms']:7.0f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    options = parse(arguments)
    try:
        found = run(options)
    except (RemoeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in found["rows"]:
        print(_line(row))
    print(f"worst error {found['worst_error']:.1%} over {len(found['rows'])} budgets")
    if options.out:
        write_json(found, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
