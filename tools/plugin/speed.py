"""Time a token with the plug-in against remoe-edge's own engine, and against the program alone.

python tools/plugin/speed.py MODEL --cache 1000MB                            against the engine
python tools/plugin/speed.py MODEL --cache 100% --program build/bin/llama-bench   against the program

Arms take turns (A B A B), each in a process of its own. The first form has the engine and a program on
the public API (the installed llama-cpp-python, plugged in) write the same greedy tokens after the same
prompt; both leave weights as they are in the file. The second runs that llama-bench with and without the
plug-in, and takes the last of four repetitions, when what was read is there: with everything resident it
tells what the plug-in costs. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests"))

import plugged  # noqa: E402
from remoe_edge.plugin import builds  # noqa: E402
from remoe_edge.plugin.environment import environment  # noqa: E402

_PROMPT = """
model_path, cache, n_prompt, n, n_threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
prompt = [(37 * i + 11) % 200 + 5 for i in range(n_prompt)]
"""
_STEPS = """
times, tokens = [], [step(prompt)]
for _ in range(n):
    begin = time.perf_counter()
    tokens.append(step(tokens[-1:]))
    times.append(time.perf_counter() - begin)
print(json.dumps({"ms": 1000 * sum(times) / n, "tokens": tokens}))
"""
_ENGINE = (
    """
import json, sys, time
from remoe_edge import Engine
"""
    + _PROMPT
    + """
engine = Engine(model_path, cache=cache, n_ctx=n_prompt + n + 8, threads=n_threads)
reset = True
def step(tokens):
    global reset
    reset, now = False, reset
    return int(engine.evaluate(tokens, reset=now).argmax())
"""
    + _STEPS
)
_PLUGGED = (
    plugged.PRELUDE
    + "import json, time\n"
    + _PROMPT
    + """
model = load(model_path, use_extra_bufts=False)
ctx = context(model, n_ctx=n_prompt + n + 8, n_threads=n_threads, n_threads_batch=n_threads)
def step(tokens):
    assert decode(ctx, tokens) == 0
    return int(logits(ctx, model).argmax())
"""
    + _STEPS
)


def main() -> None:
    """Run the arms in turn and print their times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--program", type=Path, help="a llama-bench, and the plug-in built for it")
    parser.add_argument("--cache", default="30%")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-p", "--prompt-tokens", type=int, default=16)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    arms: dict[str, Callable[[argparse.Namespace], float]] = {
        "engine": engine_ms, "plugged": api_ms
    } if given.program is None else {"stock": stock_ms, "plugged": plugged_ms}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(given.rounds):
        for name, measure in arms.items():
            times[name].append(measure(given))
            print(f"{name} {times[name][-1]:.3f} ms/token", file=sys.stderr)
    best = {name: statistics.median(found) for name, found in times.items()}
    other = next(iter(arms))
    print(json.dumps({
        "model": given.model.name, "cache": given.cache, "tokens": given.tokens, "threads": given.threads,
        "ms_per_token": times, "median": best, f"plugged_to_{other}": best["plugged"] / best[other],
    }, indent=1))  # fmt: skip


_REPEATS = 4
_written: list[list[int]] = []


def engine_ms(given: argparse.Namespace) -> float:
    """Time the engine."""
    return _api(_ENGINE, given, {})


def api_ms(given: argparse.Namespace) -> float:
    """Time a program on the public API, plugged in."""
    settings = {"cache": given.cache, "log": "error"}
    return _api(_PLUGGED, given, environment(builds.entry(None), None, settings, os.environ))


def _api(script: str, given: argparse.Namespace, added: dict[str, str]) -> float:
    words = [given.model, given.cache, given.prompt_tokens, given.tokens, given.threads]
    found = json.loads(_output([sys.executable, "-c", script, *map(str, words)], added))
    _written.append(found["tokens"])
    if _written[0] != found["tokens"]:
        raise SystemExit("the arms wrote other tokens: their times cannot be compared")
    return float(found["ms"])


def plugged_ms(given: argparse.Namespace) -> float:
    """Time llama-bench with the plug-in."""
    run = [sys.executable, "-m", "remoe_edge.cli", "plugin", "run", "--cache", given.cache]
    return _bench([*run, "--log", "error", "--", *_command(given)])


def stock_ms(given: argparse.Namespace) -> float:
    """Time llama-bench alone."""
    return _bench(_command(given))


def _command(given: argparse.Namespace) -> list[str]:
    words = {"-m": given.model, "-p": 0, "-n": given.tokens, "-t": given.threads, "-r": _REPEATS}
    return [str(given.program), "-o", "json", *(str(x) for pair in words.items() for x in pair)]


def _bench(command: list[str]) -> float:
    # The first of its repetitions read the experts; in the last they are there.
    return 1000 / float(json.loads(_output(command, {}))[0]["samples_ts"][-1])


def _output(command: list[str], added: dict[str, str]) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **added},
    ).stdout  # fmt: skip


if __name__ == "__main__":
    main()
