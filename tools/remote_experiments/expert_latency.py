#!/usr/bin/env python3
"""Measure an expert's time against a share of processors and memory, and fit T(y) both ways.

    python tools/remote_experiments/expert_latency.py MODEL -o docs/results/remote-latency.json

In a control group (needs root) with 0.1 to all cores, twice: an engine with everything resident
computes without a pause, so that the share is all it has; and a worker is asked by an engine that waits
for it, whose pauses leave it more than its share. Where platforms give processors in proportion to
memory, a share of a core is so many bytes (`--vcpu-bytes`), which makes points of T(y) from the first.
Then memory alone: the same computing with a whole core, and with a limit of `--memories` times what it
needs. `--times FILE` keeps the points for `remoe-edge plan --function-times` and `remoe-edge deploy
--function-times`. With `--seconds` a call ends after so long, and the same command goes on (its exit
code is 75).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pieces import in_pieces
from remoe_edge.bench.box import Limits, NoBoxError, boxed
from remoe_edge.deploy.deploying import WorkerSizes
from remoe_edge.engine.engine import Engine
from remoe_edge.errors import RemoeError
from remoe_edge.files.models import shipped_model
from remoe_edge.machine.disk import disk_of
from remoe_edge.placement import times_file
from remoe_edge.placement.fit import fit_latency
from remoe_edge.placement.latency_curve import FIT_WORST, GIB, Points
from remote_experiments.cpu_quota import NoQuotaError, cpu_quota, join
from remote_experiments.real import Model, answer, interval, prompts_of, until_serving
from remote_experiments.setting import keep

NOT_EXPERTS_BYTES = 256 << 20  # Python, llama.cpp's buffers, and the dense part of a small model


def busy(
    model: Model, quota: float, options: argparse.Namespace, memory_bytes: int | None = None
) -> list[float]:
    """Give a row's time in each of some rounds, where computing never pauses."""
    with (
        cpu_quota(quota) as group,
        boxed(Limits(memory_bytes), disk_of(model.path)) as box,
    ):
        job = {"model": str(model.path), "group": str(group), "threads": threads_of(quota),
               "rounds": options.rounds, "tokens": options.tokens, "text": str(options.text)}  # fmt: skip
        done = subprocess.run(
            box.command([sys.executable, __file__, "--inside", json.dumps(job)]),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SystemExit(f"{quota} cores, {memory_bytes} bytes: {said[-1]}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def inside(job: dict[str, Any]) -> None:
    """Compute in a group, and print what a row took in each round."""
    with Engine(
        job["model"], cache="100%", n_ctx=512, threads=job["threads"], lock=False
    ) as engine:
        rows = engine.native.n_layers * engine.native.n_experts_used if engine.native else 1
        prompts = prompts_of(engine, Path(job["text"]), job["rounds"] + 1, 8)
        found = []
        for i, prompt in enumerate(prompts):
            engine.evaluate(prompt)
            if not i:  # the first warms up; reading is no part of a row's time
                join(Path(job["group"]), os.getpid())
            before = engine.counts()["ffn_ns"]
            for token in prompt * (1 + job["tokens"] // len(prompt)):
                engine.evaluate([token], reset=False)
            n_tokens = len(prompt) * (1 + job["tokens"] // len(prompt))
            if i:
                found.append((engine.counts()["ffn_ns"] - before) / 1e6 / n_tokens / rows)
    print(json.dumps(found))


def threads_of(quota: float) -> int:
    """Give the threads that a share of processors can feed."""
    return max(1, min(len(os.sched_getaffinity(0)), int(np.ceil(quota))))


def asked(model: Model, quota: float, options: argparse.Namespace) -> list[float]:
    """Give a row's time in each of some rounds, as a worker reports it to an engine that waits for it."""
    cache = str(WorkerSizes(model.path).main_cache_bytes(0))
    found = []
    with cpu_quota(quota) as group:
        worker = model.worker(model.every_expert(), threads_of(quota))
        try:
            with Engine(
                model.path, peers=[worker.address], cache=cache, n_ctx=512, threads=1,
                prefetch="off", hedge=False,
            ) as engine:  # fmt: skip
                until_serving(engine, 1)
                join(group, worker.pid)  # its start and its proof are no part of a row's time
                for i, prompt in enumerate(prompts_of(engine, options.text, options.rounds + 1, 8)):
                    before = engine.stats().remote or {}
                    answer(engine, prompt, options.tokens)
                    after = engine.stats().remote or {}
                    rows = after["remote_rows"] - before["remote_rows"]
                    spent = after["remote_compute_us"] - before["remote_compute_us"]
                    if i and rows:
                        found.append(spent / rows / 1000)
        finally:
            worker.stop()
    return found


def judged(points: Points) -> dict[str, Any]:
    """Fit the exponential and the steps; say how far each is off, and where the cost is convex."""
    fit = fit_latency([size / GIB for size in points.sizes], points.row_ms)
    # At its points a step function is exact. Between two it may be off by all of the step.
    apart = [
        abs(points.row_ms[i - 1] - points.row_ms[i]) / points.row_ms[i]
        for i in range(1, len(points.sizes))
    ]
    return {
        "exponential": {
            "theta1": fit.theta1, "theta2": fit.theta2, "theta3": fit.theta3, "rmse": fit.rmse,
            "relative": fit.relative, "worst": fit.worst, "taken": fit.worst <= FIT_WORST,
            # H = 0: the main host's waiting only widens the region.
            "convex_from_bytes": 2 / fit.theta2 * GIB if fit.theta2 > 0 else None,
            "convex_share_of_points": float(
                np.mean([size >= 2 / fit.theta2 * GIB for size in points.sizes])
            ) if fit.theta2 > 0 else 1.0,
        },
        "steps": {
            "worst_between": max(apart, default=0.0),
        },
        "cost_is_convex_at_the_points": convex(points),
    }  # fmt: skip


def convex(points: Points) -> bool:
    """Say whether y · T(y), the cost of a row, is convex in y as far as its points show."""
    sizes = np.asarray(points.sizes, float)
    slopes = np.diff(sizes * np.asarray(points.row_ms)) / np.diff(sizes)
    return bool((np.diff(slopes) >= 0).all())


def main(arguments: list[str] | None = None) -> int:
    """Measure all shares."""
    parser = argparse.ArgumentParser(prog="expert_latency.py", description="Measure T(y).")
    parser.add_argument("model", type=Path, nargs="?", default=shipped_model())
    parser.add_argument("--text", type=Path, default=None, help="where prompts are cut from")
    parser.add_argument("--quotas", default="0.1,0.25,0.5,0.75,1,1.5,2")
    parser.add_argument("--memories", default="1,1.5,2,4", help="times what the experts take")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--vcpu-bytes", type=int, default=1 << 30)
    parser.add_argument("--kind", default="this machine")
    parser.add_argument("--times", type=Path)
    parser.add_argument("--seconds", type=float, help="end after so long; the next call goes on")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside is not None:
        inside(json.loads(options.inside))
        return 0
    options.text = options.text or Path(__file__).with_name("prompts.txt")
    model = Model(options.model)
    cores = len(os.sched_getaffinity(0))
    quotas = [float(each) for each in options.quotas.split(",") if float(each) <= cores]
    needed = WorkerSizes(model.path).process_bytes(len(model.every_expert()))
    needed += NOT_EXPERTS_BYTES
    memories = [float(each) for each in options.memories.split(",") if each]
    settings = {
        "model": options.model.name, "rounds": options.rounds, "tokens": options.tokens,
        "vcpu_bytes": options.vcpu_bytes,
    }  # fmt: skip
    try:
        with in_pieces(options.out, settings, options.seconds) as pieces:
            rows = []
            for quota in quotas:
                times = pieces.get(f"busy {quota}", lambda quota=quota: busy(model, quota, options))
                of_worker = pieces.get(
                    f"asked {quota}", lambda quota=quota: asked(model, quota, options)
                )
                rows.append(
                    {
                        "cores": quota, "threads": threads_of(quota), "row_ms": interval(times),
                        "rounds": times, "worker_row_ms": interval(of_worker),
                        "worker_rounds": of_worker,
                    }
                )  # fmt: skip
            of_memory = []
            for share in memories:
                limit = round(share * needed)
                times = pieces.get(
                    f"memory {share}", lambda limit=limit: busy(model, 1.0, options, limit)
                )
                of_memory.append({"memory_bytes": limit, "row_ms": interval(times)})
            points = Points(
                options.kind, tuple(round(quota * options.vcpu_bytes) for quota in quotas),
                tuple(row["row_ms"]["mean"] for row in rows),
            )  # fmt: skip
            found = {**settings, "rows": rows, "by_memory": of_memory,
                     "disturbed": pieces.disturbed()}  # fmt: skip
            if len(quotas) >= 3:
                found["fit"] = judged(points)
            tell(found)
            if options.times is not None:
                times_file.save(points, options.times)
            keep(found, options.out)
    except (NoQuotaError, NoBoxError, RemoeError) as error:
        raise SystemExit(f"{error}") from error
    return 0


def tell(found: dict[str, Any]) -> None:
    """Print a line for each row."""
    for row in found["rows"]:
        told = [f"{e['mean']:.4f} [{e['low']:.4f}, {e['high']:.4f}]"
                for e in (row["row_ms"], row["worker_row_ms"])]  # fmt: skip
        print(f"{row['cores']:5.2f} cores: {told[0]} ms a row; a worker that is asked {told[1]}")
    for row in found["by_memory"]:
        print(f"1 core, {row['memory_bytes'] >> 20} MiB: {row['row_ms']['mean']:.4f} ms a row")
    if "fit" in found:
        print(f"exponential: off by {found['fit']['exponential']['worst']:.0%} at most; steps: "
              f"{found['fit']['steps']['worst_between']:.0%} between points")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
