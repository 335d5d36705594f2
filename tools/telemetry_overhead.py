"""Measure what telemetry costs a token: the same answer without and with it, A B A B, in one engine.

    python tools/telemetry_overhead.py model.gguf --cache 30% -o overhead.json

Arm `off`: nobody watches. Arm `on`: everything at once, at 10 Hz: records to a file, Prometheus
figures, the status that `remoe-edge top` reads. Both arms get the same prompt and greedy tokens, from
an empty context, after one answer that warms the cache; text and misses must be equal, or the run
fails. TPOT is the wall clock between the first and the last piece, divided by the tokens: all that
is done between two tokens is in it. The interval is a bootstrap over pairs of rounds. Run it on a
quiet machine: what it looks for is far below what another program's load does.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from remoe_edge import Engine
from remoe_edge.cli.results import print_json, write_json
from remoe_edge.machine.description import describe
from remoe_edge.telemetry import Sampler
from remoe_edge.telemetry.metrics import Metrics
from remoe_edge.telemetry.recording import Recording
from remoe_edge.telemetry.status import Status
from typed_command import typed_command

PROMPT = "Once upon a time there was a small board that wanted to speak like a large one. It"
BOOTSTRAPS = 10_000


@contextlib.contextmanager
def watched(engine: Engine, hz: float, folder: Path) -> Iterator[Sampler]:
    """Let everything watch `engine` while the block runs."""
    sampler = Sampler(engine.path, hz=hz)
    observers = (
        Recording.start(folder / "run.jsonl", sampler=sampler, idle_s=0.1),
        Metrics(sampler),
        Status(folder / "status"),
    )
    for observer in observers:
        engine.add_observer(observer)
    try:
        yield sampler
    finally:
        for observer in observers:
            engine.remove_observer(observer)
            observer.on_close()


def answer(engine: Engine, n_tokens: int) -> dict[str, Any]:
    """Generate once; return TPOT by the wall clock, the text, and what was read."""
    engine.reset()
    times = []
    pieces = engine.generate(PROMPT, temperature=0, max_tokens=n_tokens)
    for _ in pieces:
        times.append(time.perf_counter())
    done = pieces.stats
    if done.n_generated < n_tokens:
        raise SystemExit(f"the answer ended after {done.n_generated} tokens: lower --tokens")
    return {
        "tpot_ms": 1000 * (times[-1] - times[0]) / (done.n_generated - 1),
        "text": pieces.text,
        "misses": done.decode_misses,
        "bytes_read": done.decode_bytes,
    }


def overhead(off: list[float], on: list[float]) -> dict[str, float]:
    """Compare arms: median of the pairs' ratios less 1, in percent, with a 95 % interval."""
    ratios = np.array(on) / np.array(off)
    rng = np.random.default_rng(0)
    drawn = rng.choice(ratios, (BOOTSTRAPS, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {
        "median_percent": round(100 * (float(np.median(ratios)) - 1), 3),
        "low_percent": round(100 * (float(low) - 1), 3),
        "high_percent": round(100 * (float(high) - 1), 3),
    }


def main() -> None:
    """Run the rounds and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--cache", default="30%")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--hz", type=float, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.tokens < 2 or options.rounds < 2:
        raise SystemExit("at least 2 tokens and 2 rounds")

    arms: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    cpu_s: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        # A policy that goes on learning would not miss the same experts in every round.
        Engine(
            options.model,
            cache=options.cache,
            policy="lru",
            threads=options.threads,
            publish=False,
        ) as engine,
    ):
        answer(engine, options.tokens)
        for number in range(options.rounds):
            # Which arm comes first changes from round to round, so that no drift favours one.
            for arm in ("off", "on") if number % 2 == 0 else ("on", "off"):
                if arm == "off":
                    arms[arm].append(answer(engine, options.tokens))
                    continue
                with watched(engine, options.hz, Path(folder)) as sampler:
                    arms[arm].append(answer(engine, options.tokens))
                cpu_s.append(sampler.cpu_s)
            print(
                f"round {number + 1}: "
                + ", ".join(f"{arm} {runs[-1]['tpot_ms']:.2f} ms" for arm, runs in arms.items()),
                file=sys.stderr,
            )
        runs = [run for each in arms.values() for run in each]
        for name in ("text", "misses", "bytes_read"):
            if len({run[name] for run in runs}) > 1:
                raise SystemExit(f"the rounds differ in {name}: their times cannot be compared")
        cache = engine.stats().to_dict()["cache"]

    tpots = {arm: [run["tpot_ms"] for run in runs] for arm, runs in arms.items()}
    result = {
        "command": typed_command(),
        "machine": describe(),
        "model": options.model.name,
        "budget_bytes": cache["budget_bytes"] if cache else None,
        "tokens": options.tokens,
        "hz": options.hz,
        "misses_per_token": runs[0]["misses"] / (options.tokens - 1),
        "tpot_ms": {arm: [round(each, 4) for each in values] for arm, values in tpots.items()},
        "median_tpot_ms": {arm: round(statistics.median(v), 4) for arm, v in tpots.items()},
        "overhead": overhead(tpots["off"], tpots["on"]),
        "sampler_cpu_s": round(sum(cpu_s), 4),
    }
    print_json(result)
    if options.output:
        write_json(result, options.output)


if __name__ == "__main__":
    main()
