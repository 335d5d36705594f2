#!/usr/bin/env python3
"""Measure what a GPU does, in one go and into one JSON: for a machine that is lent for minutes.

    python tools/gpu/measure.py -o gpu.json                      # on the machine with the GPU
    GGML_VK_VISIBLE_DEVICES=0 python tools/gpu/measure.py -o lavapipe.json --small --minutes 5

In this order, and as far as the minutes go: what is there; the lossless tests against stock on the same
GPU; a twin of real size, made on the spot from the model that comes along; then prefill and decode of

    stock          llama.cpp, everything on the GPU
    stock-cpu-moe  llama.cpp, experts on the processor (its --cpu-moe)
    gpu            the engine, dense weights and KV cache on the GPU, experts streamed by the processor
    gpu-experts    the same, and the cache and its computing on the GPU too
    cpu            the engine, everything on the processor

each in a process of its own, the engine with its whole cache and with half. The file is written after
each step, so that what was measured is kept whatever ends the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ALL = 1 << 20  # layers
ARMS = (
    "stock", "gpu-experts:100%", "gpu-experts:50%", "stock-cpu-moe", "gpu:100%", "gpu:50%", "cpu:100%",
    "cpu:50%",
)  # fmt: skip


class Run:
    """Hold the results so far, and how long the machine is ours."""

    def __init__(self, output: Path, minutes: float) -> None:
        self.output, self.ends = output, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"format": 1, "steps": {}}

    def left(self) -> float:
        """Give the seconds that are left."""
        return max(0.0, self.ends - time.monotonic())

    def step(self, name: str, command: list[str], share: float = 1.0) -> dict[str, Any]:
        """Run a command in what is left, or a share of it; keep its outcome."""
        started, allowed = time.monotonic(), self.left() * share
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=allowed, check=False
            )
            result: dict[str, Any] = {"status": done.returncode}
            lines = done.stdout.strip().splitlines()
            if done.returncode == 0 and lines and lines[-1].startswith("{"):
                result |= json.loads(lines[-1])
            else:
                result["said"] = (lines + done.stderr.strip().splitlines())[-12:]
        except subprocess.TimeoutExpired:
            result = {"status": "not finished", "allowed_s": round(allowed, 1)}
        result["seconds"] = round(time.monotonic() - started, 1)
        self.found["steps"][name] = result
        self.output.write_text(json.dumps(self.found, indent=1) + "\n")
        print(f"{name}: {result}"[:400], file=sys.stderr)
        return result


def measure(model: str, arm: str, n_prompt: int, n_tokens: int, threads: int | None) -> None:
    """Time one arm in this process; print a line of JSON."""
    prompt = [(37 * i + 11) % 200 + 5 for i in range(n_prompt)]
    evaluate, about = (
        _stock(model, threads) if arm == "stock-cpu-moe" else _engine(model, arm, threads)
    )
    evaluate([5, 6, 7], reset=True)  # kernels are compiled as they are first used
    started = time.perf_counter()
    row = evaluate(prompt, reset=True)
    prefill_s = time.perf_counter() - started
    steps = []
    for _ in range(n_tokens):
        token = int(row.argmax())
        started = time.perf_counter()
        row = evaluate([token], reset=False)
        steps.append(1000 * (time.perf_counter() - started))
    figures = {
        "prefill_ms": round(1000 * prefill_s, 1),
        "prompt_tokens": n_prompt,
        "tpot_ms": round(statistics.median(steps), 3),
        "tpot_mean_ms": round(statistics.fmean(steps), 3),
        **about(),
    }
    print(json.dumps(figures))


def _stock(model: str, threads: int | None) -> Any:
    import os

    from remoe_edge.bench.stock import StockModel

    stock = StockModel(
        model, "stock-resident", repack=False, threads=threads or len(os.sched_getaffinity(0)),
        n_ctx=2048, n_batch=512, n_ubatch=512, gpu_layers=ALL,
    )  # fmt: skip
    return stock.evaluate, stock.about


def _engine(model: str, arm: str, threads: int | None) -> Any:
    from remoe_edge import Engine

    kind, _, cache = arm.partition(":")
    engine = Engine(
        model, cache=cache or "100%", stream=kind != "stock", threads=threads, n_ctx=2048,
        gpu_layers="off" if kind == "cpu" else "all",
        experts_on="gpu" if kind == "gpu-experts" else "cpu",
    )  # fmt: skip

    def about() -> dict[str, Any]:
        stats = engine.stats().to_dict()
        cache = stats["cache"] or {}
        kept = {name: cache[name] for name in ("hits", "misses", "budget_bytes") if name in cache}
        probabilities = stats["router_probabilities"]
        return {**kept, "router_probabilities": probabilities, "notes": stats["notes"]}

    return engine.evaluate, about


def check() -> None:
    """Say what is there; print a line of JSON."""
    from remoe_edge import __version__
    from remoe_edge.machine.gpu import backends_without_device, gpus

    there = [vars(each) for each in gpus()]
    found = {"version": __version__, "gpus": there, "without": backends_without_device()}
    print(json.dumps(found))


def main() -> None:
    """Read the command line and run the steps."""
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=13.0, help="to end within (13)")
    parser.add_argument("--model", type=Path, help="to measure with, in place of a twin")
    parser.add_argument("--small", action="store_true", help="the model that comes along, no twin")
    parser.add_argument("--tests", default="", help="of tests/test_lossless_gpu.py: those (-k)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (512)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded (64)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # an arm, or `check`, in this process
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if asked.only == "check":
        check()
        return
    if asked.only:
        measure(str(asked.model), asked.only, asked.prompt, asked.tokens, asked.threads)
        return
    run = Run(asked.output.absolute(), asked.minutes)
    me = [sys.executable, str(Path(__file__).resolve())]
    there = run.step("check", [*me, "--only", "check"])
    if not there.get("gpus"):
        sys.exit("llama.cpp has no GPU here: nothing to measure")
    chosen = ["-k", asked.tests] if asked.tests else []
    run.step(
        "lossless",
        [
            sys.executable, "-m", "pytest", "tests/test_lossless_gpu.py", "--run-slow", "-q", *chosen,
        ],
        share=0.4,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = _model(run, asked, Path(folder))
        for arm in ARMS:
            line = [*me, "--only", arm, "--model", str(model), "--prompt", str(asked.prompt)]
            line += ["--tokens", str(asked.tokens)]
            line += ["--threads", str(asked.threads)] if asked.threads else []
            run.step(arm, line)


def _model(run: Run, asked: argparse.Namespace, folder: Path) -> Path:
    from remoe_edge.files.models import shipped_model

    if asked.model is not None:
        return Path(asked.model).absolute()
    if asked.small:
        return shipped_model()
    twin = folder / "twin.gguf"
    widen = ROOT / "tools" / "test_models" / "widen_moe.py"
    sizes = ["--embed", "2048", "--expert-ffn", "1408", "--quant", "q4_0"]
    line = [sys.executable, str(widen), str(shipped_model()), "-o", str(twin), *sizes]
    made = run.step("twin", line, share=0.5)
    return twin if made["status"] == 0 else shipped_model()


if __name__ == "__main__":
    main()
