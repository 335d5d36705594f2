#!/usr/bin/env python3
"""Measure what a GPU does, in one go and into one JSON: for a machine that is lent for minutes.

    python tools/gpu/measure.py -o gpu.json                      # on the machine with the GPU
    GGML_VK_VISIBLE_DEVICES=0 python tools/gpu/measure.py -o lavapipe.json --small --minutes 5

In this order, and as far as the minutes go: what is there; small models of every architecture and format
against stock on the same GPU (compare.py); tests (`--tests` chooses); a twin of real size, made on the
spot from the model that comes along; then prefill and decode of one text by

    stock          llama.cpp, everything on the GPU
    stock-cpu-moe  llama.cpp, experts on the processor (its --cpu-moe)
    gpu            the engine, dense weights and KV cache on the GPU, experts streamed by the processor
    gpu-experts    the same, and the cache and its computing on the GPU too
    whole          the engine with `--no-stream`: llama.cpp holds everything, on the GPU
    cpu            the engine, everything on the processor

each in a process of its own, the engine with its whole cache and with half, and all of it `--rounds`
times, arm after arm. Logits of the text are compared with stock's. The file is written after each step,
so that what was measured is kept whatever ends the run; a step has its own limit of time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

from gpu.step import run_step  # noqa: E402

ALL = 1 << 20  # layers
ARMS = (
    "stock", "whole", "gpu-experts:100%", "gpu-experts:50%", "stock-cpu-moe", "gpu:100%", "gpu:50%",
    "cpu:100%", "cpu:50%",
)  # fmt: skip
ARM_SECONDS = 45.0


class Run:
    """Hold the results so far, and how long the machine is ours."""

    def __init__(self, output: Path, minutes: float) -> None:
        self.output, self.ends = output, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"format": 2, "machine": machine(), "steps": {}}
        self._writing = threading.Lock()  # the twin is made beside other steps
        self.write()

    def left(self) -> float:
        """Give the seconds that are left."""
        return max(0.0, self.ends - time.monotonic())

    def step(self, name: str, command: list[str], seconds: float) -> dict[str, Any]:
        """Run a command for so long at most; keep its outcome. What it starts ends with it."""
        result = run_step(command, min(self.left(), seconds), cwd=ROOT)
        with self._writing:
            self.found["steps"][name] = result
            self.write()
        print(f"{name}: {json.dumps(result)}"[:600], file=sys.stderr, flush=True)
        return result

    def write(self) -> None:
        """Write what is known."""
        from remoe_edge.cli.results import write_json

        write_json(self.found, self.output)


def machine() -> dict[str, Any]:
    """Name the machine, and its driver where NVIDIA's tool is there."""
    told: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            told["processor"] = line.partition(":")[2].strip()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told["nvidia"] = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        told["nvidia"] = str(error)
    return told


def measure(asked: argparse.Namespace) -> None:
    """Time one arm in this process; print a line of JSON."""
    import numpy as np

    tokens = json.loads(asked.text.read_text())
    prompt, rest = tokens[: asked.prompt], tokens[asked.prompt :]
    threads = asked.threads or len(os.sched_getaffinity(0))
    started = time.perf_counter()
    opened = _stock if asked.only.startswith("stock") else _engine
    evaluate, about = opened(str(asked.model), asked.only, threads)
    load_s = time.perf_counter() - started
    evaluate([5, 6, 7], reset=True)  # kernels are compiled as they are first used
    prefills = []
    for _ in range(2):  # with an empty cache, and with what it then holds
        started = time.perf_counter()
        row = evaluate(prompt, reset=True)
        prefills.append(round(1000 * (time.perf_counter() - started), 1))
    before = about()
    steps, rows = [], [np.array(row, dtype=np.float32)]
    for token in rest[: asked.tokens]:
        started = time.perf_counter()
        row = evaluate([token], reset=False)
        steps.append(1000 * (time.perf_counter() - started))
        rows.append(np.array(row, dtype=np.float32))
    evaluate(prompt, reset=True)
    again = []  # the same tokens: whatever the cache can hold of them it holds
    for token in rest[: asked.tokens]:
        started = time.perf_counter()
        evaluate([token], reset=False)
        again.append(1000 * (time.perf_counter() - started))
    stacked = np.stack(rows)
    np.save(asked.keep, stacked)
    print(
        json.dumps(
            {
                "load_s": round(load_s, 2),
                "prefill_cold_ms": prefills[0],
                "prefill_ms": prefills[1],
                "prompt_tokens": len(prompt),
                "tokens": len(steps),
                "tpot_ms": round(statistics.median(steps), 3),
                "tpot_mean_ms": round(statistics.fmean(steps), 3),
                "tpot_p95_ms": round(sorted(steps)[int(0.95 * (len(steps) - 1))], 3),
                "tpot_again_ms": round(statistics.median(again), 3),
                "tpot_again_mean_ms": round(statistics.fmean(again), 3),
                "perplexity": perplexity(stacked, rest),
                "before_decode": before,
                **about(),
            }
        )
    )


def perplexity(rows: Any, following: list[int]) -> float:
    """Give exp of the mean loss of the tokens that follow each row."""
    import numpy as np

    rows = rows[: len(following)].astype(np.float64)
    most = rows.max(axis=1, keepdims=True)
    logs = rows - most - np.log(np.exp(rows - most).sum(axis=1, keepdims=True))
    return round(float(np.exp(-logs[np.arange(len(rows)), following[: len(rows)]].mean())), 6)


def agreement(rows: Path, wanted: Path) -> dict[str, Any]:
    """Compare an arm's logits with stock's."""
    import numpy as np

    ours, theirs = np.load(rows), np.load(wanted)
    same = (ours.view(np.uint32) == theirs.view(np.uint32)).all(axis=1)
    return {
        "prompt_equal": bool(same[0]),
        "rows_equal": int(same.sum()),
        "rows": len(same),
        "argmax_equal": int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum()),
        "max_difference": float(np.abs(ours - theirs).max()),
        "largest": float(np.abs(theirs).max()),
    }


def _stock(model: str, arm: str, threads: int) -> Any:
    from remoe_edge.bench.stock import StockModel

    stock = StockModel(
        model, "stock-resident", repack=False, threads=threads, n_ctx=2048, n_batch=512, n_ubatch=512,
        gpu_layers=ALL, cpu_moe=arm == "stock-cpu-moe",
    )  # fmt: skip
    return stock.evaluate, stock.about


def _engine(model: str, arm: str, threads: int) -> Any:
    from remoe_edge import Engine

    kind, _, cache = arm.partition(":")
    engine = Engine(
        model, cache=cache or "100%", stream=kind != "whole", threads=threads, n_ctx=2048, n_batch=512,
        n_ubatch=512,
        gpu_layers="off" if kind == "cpu" else "all",
        experts_on="gpu" if kind == "gpu-experts" else "cpu",
    )  # fmt: skip

    def about() -> dict[str, Any]:
        stats = engine.stats().to_dict()
        cache = {k: v for k, v in (stats["cache"] or {}).items() if not isinstance(v, list)}
        return {
            "cache": cache,
            "counts": engine.native.counts() if engine.streamed else {},
            "router_probabilities": stats["router_probabilities"],
            "notes": stats["notes"],
        }

    return engine.evaluate, about


def check() -> None:
    """Say what is there; print a line of JSON."""
    from remoe_edge import __version__
    from remoe_edge.machine.gpu import backends_without_device, gpus

    there = [vars(each) for each in gpus()]
    found = {"version": __version__, "gpus": there, "without": backends_without_device()}
    print(json.dumps(found))


def text(model: Path, n_tokens: int, output: Path) -> None:
    """Write the first tokens of a held-out text as JSON."""
    import llama_cpp

    words = (ROOT / "models" / "heldout" / "passages.txt").read_bytes()[: 16 * n_tokens]
    vocabulary = llama_cpp.Llama(str(model), vocab_only=True, n_gpu_layers=0, verbose=False)
    tokens = vocabulary.tokenize(words)[:n_tokens]
    output.write_text(json.dumps(tokens))
    print(json.dumps({"tokens": len(tokens)}))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=13.0, help="to end within (13)")
    parser.add_argument("--model", type=Path, help="to measure with, in place of a twin")
    parser.add_argument("--small", action="store_true", help="the model that comes along, no twin")
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument("--compare-minutes", type=float, default=4.0, help="for compare.py (4)")
    parser.add_argument("--compare", default="", help="cases of compare.py: its --only")
    parser.add_argument("--tests", default="", help="tests of test_lossless_gpu.py to run (-k)")
    parser.add_argument("--test-minutes", type=float, default=2.0, help="for them (2)")
    parser.add_argument("--rounds", type=int, default=2, help="of all arms (2)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (512)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded (64)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a step, in this process
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the steps, or one of them in this process."""
    asked = arguments()
    sys.path.insert(0, str(ROOT))
    if asked.only == "check":
        check()
    elif asked.only == "text":
        text(asked.model, asked.prompt + asked.tokens + 1, asked.text)
    elif asked.only:
        measure(asked)
    else:
        orchestrate(asked)


def orchestrate(asked: argparse.Namespace) -> None:
    """Run all steps, each in a process of its own."""
    run = Run(asked.output.absolute(), asked.minutes)
    me = [sys.executable, str(Path(__file__).resolve())]
    there = run.step("check", [*me, "--only", "check"], 60)
    if not there.get("gpus"):
        sys.exit("llama.cpp has no GPU here: nothing to measure")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        making = threading.Thread(target=twin, args=(run, asked, folder))
        making.start()  # one processor's work, beside that of others
        compare(run, asked)
        making.join()
        arms(run, asked, folder, me)


def compare(run: Run, asked: argparse.Namespace) -> None:
    """Compare small models with stock, and run the chosen tests."""
    beside = run.output.parent
    if asked.compare_minutes > 0:
        line = [
            sys.executable,
            str(Path(__file__).with_name("compare.py")),
            "--only",
            asked.compare,
        ]
        line += ["-o", str(beside / "cases.json"), "--minutes", str(asked.compare_minutes)]
        run.step("compare", [*line, "--jobs", str(asked.jobs)], 60 * asked.compare_minutes + 20)
    if asked.tests:
        run.step("tests", tests(asked, beside), 60 * asked.test_minutes)


def arms(run: Run, asked: argparse.Namespace, folder: Path, me: list[str]) -> None:
    """Time all arms, and compare their logits with stock's."""
    from remoe_edge.files.models import shipped_model

    made = folder / "twin.gguf"
    model = asked.model.absolute() if asked.model else made if made.exists() else shipped_model()
    os.sync()  # what follows reads past the page cache
    told = folder / "text.json"
    common = ["--model", str(model), "--text", str(told)]
    common += ["--prompt", str(asked.prompt), "--tokens", str(asked.tokens)]
    common += ["--threads", str(asked.threads)] if asked.threads else []
    run.step("text", [*me, "--only", "text", *common], 60)
    for n in range(asked.rounds):
        for arm in ARMS:
            keep = folder / f"{arm}.npy"
            line = [*me, "--only", arm, *common, "--keep", str(keep)]
            result = run.step(f"{arm} {n + 1}", line, ARM_SECONDS)
            wanted = folder / ("stock-cpu-moe.npy" if arm.startswith("gpu:") else "stock.npy")
            if result["status"] == 0 and wanted.exists():
                result["beside_stock"] = agreement(keep, wanted)
                run.write()


def tests(asked: argparse.Namespace, beside: Path) -> list[str]:
    """Give the command of the chosen tests, in several processes where pytest can."""
    import importlib.util

    line = [sys.executable, "-m", "pytest", "tests/test_lossless_gpu.py", "--run-slow", "-v", "-rA"]
    line += ["-k", asked.tests] if asked.tests != "all" else []
    line += ["--junitxml", str(beside / "tests.xml"), "--tb=short"]
    return line + (["-n", str(asked.jobs)] if importlib.util.find_spec("xdist") else [])


def twin(run: Run, asked: argparse.Namespace, folder: Path) -> None:
    """Make the model to measure with, unless another was named."""
    from remoe_edge.files.models import shipped_model

    if asked.model is not None or asked.small:
        return
    made = folder / "twin.part"
    widen = ROOT / "tools" / "test_models" / "widen_moe.py"
    sizes = ["--embed", "2048", "--expert-ffn", "1408", "--quant", "q4_0"]
    line = [sys.executable, str(widen), str(shipped_model()), "-o", str(made), *sizes]
    result = run.step("twin", line, 120)
    if result["status"] == 0:
        made.rename(folder / "twin.gguf")


if __name__ == "__main__":
    main()
