"""Run a plugged program with random settings in a memory cgroup: does it keep to what was promised?

sudo python tools/plugin/memory.py [--settings 50] [--seed 24] [-o RECORD.json [--go-on]]

The promise is the sum of dense weights, the cache that the plug-in named, llama.cpp's own buffers and
64 MiB. Each setting runs twice: with room to spare, where the kernel's account of the peak must be within
the promise; and with the promise as the limit, where the kernel must kill nothing. The program is a small
one on the public API: two prompts, and twelve tokens after each. The model is random, of 340 MB.

Each setting is kept as it is done, beside the record until all are: the same command goes on. With
--go-on, settings that a record has are not run again either.

The exit status is 1 if a peak was above its promise or a run was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tools")]

import plugged  # noqa: E402
import tiny_moe  # noqa: E402
from pieces import Parts, in_pieces  # noqa: E402
from remoe_edge import _core  # noqa: E402
from remoe_edge.bench.box import Cgroup, Limits, NoBoxError, boxed  # noqa: E402
from remoe_edge.cli.results import write_json  # noqa: E402

SLACK_BYTES = 64 << 20
_ROOM_BYTES = 4 << 30

_PROGRAM = """
model = load(sys.argv[1])
ctx = context(model, n_ctx=1024, n_batch=1024, n_ubatch=int(sys.argv[2]))
assert model and ctx
for length in (600, 40):
    forget(ctx)
    assert decode(ctx, [(37 * i + 11) % 200 + 5 for i in range(length)]) == 0
    for token in range(5, 17):
        assert decode(ctx, [token]) == 0
"""


@dataclass(frozen=True)
class Choice:
    """Hold what a user might choose: the plug-in's settings, and the program's batch."""

    settings: dict[str, str]
    n_ubatch: int


@dataclass(frozen=True)
class Run:
    """Hold how a run went: its exit status, what it said, its peak in bytes."""

    status: int
    said: str
    peak_bytes: int


def make_model(path: Path) -> Path:
    """Write a model of about 340 MB, nearly all of it experts."""
    sizes = {"n_layer": 6, "n_embd": 512, "n_ff_exp": 512, "n_expert": 64, "n_expert_used": 6}
    return tiny_moe.make(path, "qwen3moe", "Q8_0", **sizes)


def choices(n: int, seed: int = 24) -> list[Choice]:
    """Draw settings: always the same for a seed."""
    draw = random.Random(seed)
    return [
        Choice(
            {
                "cache": draw.choice([f"{draw.randint(3, 100)}%", f"{draw.randint(6, 400)}MiB"]),
                "prefetch": draw.choice(["on", "off", "auto"]),
                "policy": draw.choice(["reuse-biased", "lru", "lfu"]),
                "repack": draw.choice(["auto", "off"]),
            },
            draw.choice([16, 64, 512]),
        )
        for _ in range(n)
    ]


def run(model: Path, choice: Choice, limit_bytes: int) -> Run:
    """Run the program below a limit. Raises NoBoxError where none can be set."""
    with boxed(Limits(limit_bytes)) as box:
        if not isinstance(box, Cgroup):
            raise NoBoxError("the account of a scope is gone with its process: run as root")
        words = [
            sys.executable, "-c", plugged.PRELUDE + _PROGRAM, str(model), str(choice.n_ubatch)
        ]  # fmt: skip
        done = subprocess.run(
            box.command(words), capture_output=True, text=True,
            env={**os.environ, **plugged.added(**choice.settings)},
        )  # fmt: skip
        peak_bytes = box.account().peak_bytes
        assert peak_bytes is not None
        return Run(done.returncode, done.stderr, peak_bytes)


def promise(told: str, dense_bytes: int) -> int:
    """Sum up what was promised, from the plug-in's own line and from llama.cpp's."""
    (cache,) = re.findall(r"a cache of .*?([\d.]+) MiB", told)
    buffers = re.findall(r"(?:KV|output|compute) buffer size = +([\d.]+) MiB", told)
    return dense_bytes + int((float(cache) + sum(map(float, buffers))) * (1 << 20)) + SLACK_BYTES


def check(model: Path, choice: Choice) -> dict[str, Any]:
    """Run a setting with room to spare, then with its promise as the limit; return the figures."""
    dense_bytes = _core.ModelFile.open(str(model)).dense_bytes
    free = run(model, choice, _ROOM_BYTES)
    if free.status:
        raise SystemExit(f"{choice} ended with {free.status}: {free.said[-800:]}")
    promised = promise(free.said, dense_bytes)
    tight = run(model, choice, promised)
    return {
        **choice.settings,
        "n_ubatch": choice.n_ubatch,
        "promise_bytes": promised,
        "peak_bytes": free.peak_bytes,
        "status_at_the_promise": tight.status,
        "kept": free.peak_bytes <= promised and tight.status == 0,
    }


def main() -> None:
    """Run all settings and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--settings", type=int, default=50)
    parser.add_argument("--seed", type=int, default=24)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--go-on", action="store_true", help="keep the runs that --output has")
    given = parser.parse_args()
    if given.go_on and given.output is None:
        parser.error("--go-on wants --output")
    taken = parts_of if given.go_on else None
    with (
        in_pieces(given.output, {"seed": given.seed}, parts_of=taken) as pieces,
        tempfile.TemporaryDirectory(prefix="plugin-memory-") as folder,
    ):
        model = make_model(Path(folder) / "medium.gguf")
        for number, choice in enumerate(choices(given.settings, given.seed), 1):
            print(json.dumps(pieces.get(str(number), partial(check, model, choice))), flush=True)
        rows = list(pieces.found.values())
        if given.output is not None:
            write_json(record(rows, given.seed), given.output)
    sys.exit(0 if all(row["kept"] for row in rows) else 1)


def parts_of(held: dict[str, Any]) -> Parts:
    """Cut a record into its runs: a seed's settings are always drawn in the same order."""
    return {"seed": held["seed"]}, {str(i): row for i, row in enumerate(held["runs"], 1)}


def record(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Sum up what the runs showed."""
    return {
        "settings": len(rows),
        "seed": seed,
        "kept": sum(row["kept"] for row in rows),
        "killed_or_failed": sum(row["status_at_the_promise"] != 0 for row in rows),
        "highest_peak_of_promise": max(row["peak_bytes"] / row["promise_bytes"] for row in rows),
        "runs": rows,
    }


if __name__ == "__main__":
    main()
