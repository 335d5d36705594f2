#!/usr/bin/env python3
"""Is a plan kept? Models × disks × targets: promised and measured time per token after 64 tokens.

    sudo python tools/check_plan_kept.py MODEL.gguf MODEL2.gguf MODEL3.gguf --text heldout/prose.txt \\
        --read-bandwidth 150MB,400MB,1500MB --at-most 110 -o kept.json

Each run is a process of its own in a box with a cap on reads, without a trace and without earlier
records. It opens the engine with `--cache plan:T`, reads the text token by token, leaves the first 64
uncounted and measures the next ones. Targets are multiples of what computing alone takes here
(`--targets`). A run is good if it is within 20 % above its promise, or if the engine says that it
cannot be; one that is far faster with more memory than the floor is shown as such. Wants a quiet
machine, and root for the cap. The exit status is 1 if a promise was broken in silence.

Runs that kept.json has are not run again, so another command adds to it. Each run is kept as it is done,
beside kept.json until all are: the same command goes on. `--at-most` begins no further run that would
likely end after so many seconds; the status is 75 while some are left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from pieces import Parts, in_pieces
from remoe_edge.bench.box import Limits, boxed
from remoe_edge.cli.results import write_json
from remoe_edge.errors import BudgetError, InputError, RemoeError
from remoe_edge.machine.description import describe
from remoe_edge.machine.disk import disk_of
from remoe_edge.plan.keeper import JUDGED_AFTER, PROMISE
from remoe_edge.units import mib, parse_bytes
from typed_command import typed_command

_KEY = ("model", "read_bytes_per_s", "memory_bytes", "factor", "prompt", "tokens", "skip")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="check_plan_kept.py", description="Is a plan kept?")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--text", type=Path, required=True, help="what the engine reads")
    parser.add_argument("--skip", type=int, default=0, help="tokens of the text not read (0)")
    parser.add_argument("--read-bandwidth", default="", metavar="SIZE[,...]", help="none: no cap")
    parser.add_argument("--memory-limit", metavar="SIZE", help="of each run's box")
    parser.add_argument("--targets", default="2,1.3,4", help="times computing alone (2,1.3,4)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens read at once (64)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens counted (64)")
    parser.add_argument("--at-most", type=float, metavar="SECONDS", help="stop before; needs -o")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a target, in the box
    chosen = parser.parse_args(arguments)
    if chosen.at_most is not None and chosen.out is None:
        parser.error("--at-most needs -o, where it goes on")
    return chosen


def one(options: argparse.Namespace) -> dict[str, Any]:
    """Run one target in this process; `--one` is what to multiply computing by."""
    from remoe_edge import Engine, EngineSettings
    from remoe_edge.machine.memory import available
    from remoe_edge.plan.measure import measure_machine

    n_ctx = options.prompt + JUDGED_AFTER + options.tokens
    model = options.models[0]
    settings = EngineSettings(n_ctx=n_ctx)
    room = available()
    measured = measure_machine(
        model, settings, memory_bytes=room.available_bytes - room.reserve_bytes
    )
    resident_ms = measured.machine.resident_ms
    target_ms = float(options.one) * resident_ms
    found: dict[str, Any] = {
        "target_ms": target_ms, "resident_ms": resident_ms,
        "bytes_per_s": measured.machine.bandwidth, "measured_ms": None, "said": [],
    }  # fmt: skip
    try:
        engine = Engine(model, settings.replace(cache=f"plan:{target_ms:.3f}ms"))
    except BudgetError as error:
        return {**found, "said": [str(error)]}
    with engine:
        tokens = engine.tokenize(options.text.read_text(encoding="utf-8"), special=True)
        tokens = tokens[options.skip : options.skip + n_ctx]
        if len(tokens) < n_ctx:
            raise InputError(
                f"{options.text.name} has {len(tokens)} tokens to read, {n_ctx} are needed"
            )
        notes, begun = engine.notes_since(0)
        found["begins_with"] = engine.native.n_slots if engine.native else 0
        found["why"] = engine.budget.why if engine.budget else ""
        engine.evaluate(tokens[: options.prompt])
        times = []
        for token in tokens[options.prompt :]:
            start = time.perf_counter()
            engine.evaluate([token], reset=False)
            times.append((time.perf_counter() - start) * 1000)
        stats = engine.stats().to_dict()["cache"]
        counted = times[JUDGED_AFTER:]
        found |= {
            "measured_ms": sum(counted) / len(counted),
            "first_ms": sum(times[:16]) / 16,
            "slots": stats["slots"],
            "share": stats["slots"] / (engine.native.total_experts if engine.native else 1),
            "budget_bytes": stats["budget_bytes"],
            "plan": stats["plan"],
            "notes": notes,
            "said": engine.notes_since(begun)[0],
        }
    return found


def judge(found: dict[str, Any]) -> str:
    """Call a run kept, said or BROKEN; a note about anything else says nothing of the promise."""
    if found["measured_ms"] is None:
        return "said"  # refused before it began
    if found["measured_ms"] <= PROMISE * found["target_ms"]:
        return "kept"
    return (
        "said"
        if any("per token" in line and "kept" in line for line in found["said"])
        else "BROKEN"
    )


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """List the runs that the command line asks for, all models and disks at one target first."""
    rates = [parse_bytes(each) for each in options.read_bandwidth.split(",") if each] or [None]
    memory = parse_bytes(options.memory_limit) if options.memory_limit else None
    return [
        dict(zip(_KEY, (str(model), rate, memory, float(factor), options.prompt, options.tokens,
                        options.skip), strict=True))
        for factor in options.targets.split(",") for model in options.models for rate in rates
    ]  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing; the record has those runs too that it had before."""
    with in_pieces(options.out, {}, options.at_most, parts_of) as pieces:
        for each in wanted(options):
            name = _named({**each, "model": Path(each["model"]).name})
            pieces.get(name, partial(run_one, options, each))
        rows = list(pieces.found.values())
        record = {
            "command": typed_command(), "machine": describe(), "load_average": os.getloadavg(),
            **pieces.record, "rows": rows,
            "broken": sum(row["outcome"] == "BROKEN" for row in rows),
        }  # fmt: skip
        if options.out is not None:
            write_json(record, options.out)
    return record


def run_one(options: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Run in a box, judge, and say on stderr what came of it."""
    model, begin = Path(asked["model"]), time.monotonic()
    limits = Limits(asked["memory_bytes"], asked["read_bytes_per_s"])
    found = _boxed(options, model, limits, asked["factor"])
    seconds = round(time.monotonic() - begin, 1)
    row = {**asked, "model": model.name, **found, "seconds": seconds, "outcome": judge(found)}
    print(_line(row), file=sys.stderr, flush=True)
    return row


def parts_of(record: dict[str, Any]) -> Parts:
    """Cut a record into its runs; each has all its settings."""
    return {}, {_named(row): row for row in record["rows"]}


def _named(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in _KEY)


def _boxed(
    options: argparse.Namespace, model: Path, limits: Limits, factor: float
) -> dict[str, Any]:
    words = [
        sys.executable, __file__, str(model), "--one", str(factor), "--text", str(options.text),
        "--skip", str(options.skip), "--prompt", str(options.prompt), "--tokens", str(options.tokens),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as home, boxed(limits, disk_of(model)) as box:
        done = subprocess.run(
            box.command(words), capture_output=True, text=True, check=False,
            env={**os.environ, "HOME": home},
        )  # fmt: skip
    if done.returncode != 0:
        raise RemoeError(f"{model.name}: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _line(row: dict[str, Any]) -> str:
    rate = row["read_bytes_per_s"]
    disk = "no cap" if rate is None else f"{mib(rate)}/s"
    measured = row["measured_ms"]
    times = "refused" if measured is None else f"{measured:7.1f} measured"
    share = f", {row['share']:.0%} of the experts" if "share" in row else ""
    said = f"; {row['said'][-1]}" if row["said"] else ""
    return (
        f"{row['outcome']:<6} {row['model']}, {disk}: {row['target_ms']:7.1f} ms promised, {times}"
        f"{share}{said}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    options = parse(arguments)
    try:
        if options.one is not None:
            print(json.dumps(one(options)))
            return 0
        found = run(options)
    except (RemoeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in found["rows"]:
        print(_line(row))
    print(f"{found['broken']} of {len(found['rows'])} promises broken in silence")
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
