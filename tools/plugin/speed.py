"""Time a token in a program of llama.cpp with the plug-in, in the engine, and in the program alone.

python tools/plugin/speed.py MODEL --program build/bin/llama-bench --cache 1000MB --rounds 2

Arms take turns (A B C A B C), each in a process of its own. Fix read_ahead_kb at 128 and set a memory
cgroup before you compare with stock: tools/README of the bench says how. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_ENGINE = """
import json, sys, time
from remoe_edge import Engine
model, cache, n_prompt, n, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with Engine(model, cache=cache, n_ctx=n_prompt + n + 8, threads=threads or None) as engine:
    prompt = [(37 * i + 11) % 200 + 5 for i in range(n_prompt)]
    token = int(engine.evaluate(prompt).argmax())
    times = []
    for _ in range(n):
        begin = time.perf_counter()
        token = int(engine.evaluate([token], reset=False).argmax())
        times.append(time.perf_counter() - begin)
    print(json.dumps(1000 * sum(times) / n))
"""


def main() -> None:
    """Run the arms in turn and print their times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--program", type=Path, required=True, help="a llama-bench")
    parser.add_argument("--cache", default="30%")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-p", "--prompt-tokens", type=int, default=16)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-stock", action="store_true")
    given = parser.parse_args()
    arms = {"engine": engine_ms, "plugged": plugged_ms, "stock": stock_ms}
    if given.no_stock:
        del arms["stock"]
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(given.rounds):
        for name, measure in arms.items():
            times[name].append(measure(given))
            print(f"{name} {times[name][-1]:.2f} ms/token", file=sys.stderr)
    best = {name: statistics.median(found) for name, found in times.items()}
    print(json.dumps({
        "model": given.model.name, "cache": given.cache, "tokens": given.tokens,
        "ms_per_token": times, "median": best, "plugged_to_engine": best["plugged"] / best["engine"],
        **({"plugged_to_stock": best["plugged"] / best["stock"]} if "stock" in best else {}),
    }, indent=1))  # fmt: skip


def engine_ms(given: argparse.Namespace) -> float:
    """Time the engine."""
    words = [given.model, given.cache, given.prompt_tokens, given.tokens, given.threads]
    return float(_output([sys.executable, "-c", _ENGINE, *map(str, words)]))


def plugged_ms(given: argparse.Namespace) -> float:
    """Time llama-bench with the plug-in."""
    run = [
        sys.executable,
        "-m",
        "remoe_edge.cli",
        "plugin",
        "run",
        "--cache",
        given.cache,
        "--log",
        "error",
    ]
    return _bench([*run, "--", *_command(given)])


def stock_ms(given: argparse.Namespace) -> float:
    """Time llama-bench alone, with the flag that is fastest for it below memory."""
    return _bench(_command(given))


def _command(given: argparse.Namespace) -> list[str]:
    words = {
        "-m": given.model,
        "-p": 0,
        "-n": given.tokens,
        "-t": given.threads,
        "-r": 1,
        "-o": "json",
    }
    return [str(given.program), *(str(word) for pair in words.items() for word in pair)]


def _bench(command: list[str]) -> float:
    return 1000 / float(json.loads(_output(command))[0]["avg_ts"])


def _output(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout


if __name__ == "__main__":
    main()
