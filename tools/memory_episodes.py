#!/usr/bin/env python3
"""Run an engine beside a process that takes and gives back memory in the same cgroup, at random.

    sudo python tools/memory_episodes.py MODEL.gguf --limit 300MiB --episodes 1000 --seed 1 -o result.json

Both live in one memory cgroup of `--limit` bytes, where the kernel kills when nothing is left. In each
episode the neighbour takes a random amount at a random speed, holds it for a moment and gives back all
or a part. The engine (`--cache auto`) answers the same prompts all the while. What counts:

    kills       of either, by the kernel's account: must be 0
    bits        a hash of all logits of each prompt: must be what it was before the first episode
    waits       how long the neighbour took to have its memory, less what its speed explains and the
                time that it waited for a processor
    TPOT        in the quiet time before, during the episodes, and in the quiet time after them

Needs root (a cgroup of its own). The exit status is 1 if anything was killed or any bit differed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from remoe_edge.bench.box import Box, Cgroup, Limits, NoBoxError, boxed
from remoe_edge.cli.results import print_json, write_json
from remoe_edge.errors import RemoeError
from remoe_edge.machine import kernel_files
from remoe_edge.units import MIB, mib, parse_bytes
from typed_command import typed_command

_PATIENCE_S = 600.0  # for a machine that has other work


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="memory_episodes.py", description="An engine beside a neighbour that takes memory."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--limit", default="300MiB", help="of the cgroup (300MiB)")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fastest", type=float, default=800, help="MiB/s that it takes (800)")
    parser.add_argument("--hold", type=float, default=0.4, help="seconds that it holds it, at most")
    parser.add_argument("--prompt", type=int, default=48, help="tokens of a prompt (48)")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of an answer (24)")
    parser.add_argument("--quiet", type=int, default=4, help="answers before and after (4)")
    parser.add_argument(
        "--settle", type=float, default=6, help="seconds before the end's figures (6)"
    )
    parser.add_argument("--cache", default="auto")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--be", choices=("engine", "neighbour"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# --- the two processes ------------------------------------------------------------------------------


def be_engine(options: argparse.Namespace) -> None:
    """Answer the same prompts for ever; a line of JSON for each."""
    from remoe_edge import Engine

    with Engine(options.model, cache=options.cache, n_ctx=512) as engine:
        n_vocab = int(engine.llama.n_vocab())
        assert engine.native is not None
        floor = engine.native.budget_for(engine.native.n_experts_used)
        number = 0
        while True:
            which = number % 3
            prompt = [(37 * i + 11 * which + 5) % n_vocab for i in range(options.prompt)]
            bits, times = hashlib.sha256(), []
            logits = engine.evaluate(prompt)
            for _ in range(options.tokens):
                bits.update(logits.tobytes())
                start = time.perf_counter()
                logits = engine.evaluate([int(logits.argmax())], reset=False)
                times.append((time.perf_counter() - start) * 1000)
            said = {
                "prompt": which, "bits": bits.hexdigest(), "token_ms": times, "floor_bytes": floor,
                "slots": engine.native.n_slots, "budget_bytes": engine.native.budget_bytes,
            }  # fmt: skip
            print(json.dumps(said), flush=True)
            number += 1


def be_neighbour() -> None:
    """Take and give as lines on stdin say: "BYTES MIB_PER_S" is what to hold, and how fast to take it."""
    held: list[mmap.mmap] = []
    piece = MIB
    filler = b"\x55" * piece
    for line in sys.stdin:
        wanted, speed = int(line.split()[0]), float(line.split()[1])
        start, queued = time.monotonic(), queued_s()
        while len(held) * piece > wanted:
            held.pop().close()
        begun = len(held)
        while (len(held) + 1) * piece <= wanted:
            held.append(mmap.mmap(-1, piece, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            held[-1].write(filler)
            ahead = start + (len(held) - begun) / speed - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
        said = {
            "seconds": time.monotonic() - start,
            "least": max(0, len(held) - begun) / speed,
            "queued": queued_s() - queued,
        }
        print(json.dumps(said), flush=True)


def queued_s() -> float:
    """Give how long this process has waited for a processor so far, which is no wait for memory."""
    parts = kernel_files.text(Path("/proc/self/schedstat")).split()
    return int(parts[1]) / 1e9 if len(parts) > 1 else 0.0


# --- who looks on -----------------------------------------------------------------------------------


@dataclass
class Talker:
    """One of the two, in the box; its lines come through a queue."""

    box: Box
    words: list[str]
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.box.command([sys.executable, __file__, *self.words]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        self.errors: list[str] = []
        threading.Thread(target=self._hear, args=(self.process.stderr,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.put(line)
        self.lines.put(None)

    def _hear(self, stream: IO[str]) -> None:
        for line in stream:
            self.errors.append(line.rstrip())

    def say(self, text: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def next(self) -> dict[str, Any]:
        """Wait for its next line."""
        line = self.lines.get(timeout=_PATIENCE_S)
        if line is None:
            status = self.process.wait()
            raise RemoeError(f"{self.words[-1]} ended with {status}: {'; '.join(self.errors[-3:])}")
        return dict(json.loads(line))

    def waiting(self) -> list[dict[str, Any]]:
        """Take the lines that are there, and wait for none."""
        found = []
        while not self.lines.empty():
            found.append(self.next())
        return found

    def end(self) -> None:
        """Kill it, if it lives."""
        self.process.kill()
        self.process.wait()


@dataclass
class Course:
    """Everything that was seen."""

    answers: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"before": [], "during": [], "after": []}
    )
    waits_s: list[float] = field(default_factory=list)
    taken_bytes: list[int] = field(default_factory=list)
    failure: str = ""

    def report(self, box: Cgroup, options: argparse.Namespace) -> dict[str, Any]:
        """Sum it up."""
        known = {each["prompt"]: each["bits"] for each in self.answers["before"]}
        answers = [each for phase in self.answers.values() for each in phase]
        waits = sorted(self.waits_s) or [0.0]
        slots = [each["slots"] for each in answers] or [0]
        return {
            "command": typed_command(),
            "load_average": os.getloadavg(),
            "limit_bytes": parse_bytes(options.limit),
            "seed": options.seed,
            "episodes": len(self.waits_s),
            "kills": box.oom_kills() or 0,
            "failure": self.failure,
            "answers": len(answers),
            "other_bits": sum(each["bits"] != known.get(each["prompt"]) for each in answers),
            "slots": {"least": min(slots), "most": max(slots)},
            "taken_mib": {
                "mean": round(statistics.fmean(self.taken_bytes or [0]) / MIB, 1),
                "most": max(self.taken_bytes or [0]) // MIB,
            },
            "wait_s": {
                "median": round(statistics.median(waits), 4),
                "p99": round(waits[int(0.99 * (len(waits) - 1))], 4),
                "most": round(waits[-1], 4),
            },
            "tpot_ms": {
                phase: round(statistics.fmean([ms for each in some for ms in each["token_ms"]]), 3)
                for phase, some in self.answers.items()
                if some
            },
            "peak_bytes": box.account().peak_bytes,
            "end_bytes": {"slots": slots[-1], "budget": (answers or [{}])[-1].get("budget_bytes")},
        }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the episodes. Raises NoBoxError where no cgroup can be made."""
    limit = parse_bytes(options.limit)
    dice = random.Random(options.seed)
    course = Course()
    with boxed(Limits(limit)) as box:
        if not isinstance(box, Cgroup):
            raise NoBoxError("both processes have to be in one cgroup: run as root")
        words = [
            str(options.model),
            "--prompt",
            str(options.prompt),
            "--tokens",
            str(options.tokens),
        ]
        engine = Talker(box, [*words, "--cache", options.cache, "--be", "engine"])
        neighbour = Talker(box, [str(options.model), "--be", "neighbour"])
        try:
            _course(options, limit, box, engine, neighbour, dice, course)
        except RemoeError as error:
            course.failure = str(error)
        finally:
            found = course.report(box, options)
            engine.end()
            neighbour.end()
    return found


def _course(
    options: argparse.Namespace, limit: int, box: Cgroup, engine: Talker, neighbour: Talker,
    dice: random.Random, course: Course,
) -> None:  # fmt: skip
    course.answers["before"] = [engine.next() for _ in range(max(3, options.quiet))]
    last = course.answers["before"][-1]
    assert box.usage_file is not None
    usage = kernel_files.number(box.usage_file) or 0
    # All but the smallest cache that works, and what keeps a program going.
    most = limit - (usage - last["budget_bytes"] + last["floor_bytes"]) - 48 * MIB
    held = 0
    for _ in range(options.episodes):
        held = dice.randrange(most) if dice.random() < 0.7 else dice.randrange(held + 1)
        neighbour.say(f"{held} {dice.uniform(20, options.fastest):.0f}")
        told = neighbour.next()
        course.waits_s.append(max(0.0, told["seconds"] - told["least"] - told["queued"]))
        course.taken_bytes.append(held)
        time.sleep(dice.uniform(0, options.hold))
        course.answers["during"] += engine.waiting()
        if engine.process.poll() is not None:
            engine.next()
    neighbour.say("0 1")
    neighbour.next()
    course.answers["during"] += engine.waiting()
    # The cache grows again in a few seconds, and has to be filled.
    settled = time.monotonic() + options.settle
    while time.monotonic() < settled:
        engine.next()
    course.answers["after"] = [engine.next() for _ in range(max(3, options.quiet))]


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    options = parse(arguments)
    if options.be == "engine":
        be_engine(options)
    if options.be == "neighbour":
        be_neighbour()
        return 0
    try:
        found = run(options)
    except (RemoeError, OSError, queue.Empty) as error:
        print(f"error: {error or 'a process fell silent'}", file=sys.stderr)
        return 1
    print_json(found)
    print(
        f"{found['episodes']} episodes in {mib(found['limit_bytes'])}: {found['kills']} kills, "
        f"{found['other_bits']} answers of other bits; TPOT {found['tpot_ms']}",
        file=sys.stderr,
    )
    if options.out:
        write_json(found, options.out)
    return 1 if found["kills"] or found["other_bits"] or found["failure"] else 0


if __name__ == "__main__":
    sys.exit(main())
