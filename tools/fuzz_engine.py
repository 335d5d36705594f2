"""Fuzz a whole engine: random settings, questions, faults and interrupts, bit-compared with stock.

    python tools/fuzz_engine.py --seconds 3600 --seed 1

An episode is a tiny model of some architecture and what happens to engines of it (tools/fuzz/episode.py
says what is drawn and what is checked). It runs in a child process, so that a crash or a hang is a
finding too. Prints the figures every minute. Exits 1 if a promise was broken; the seed repeats it, as far
as threads and storage let it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from fuzz.process import Child  # noqa: E402

FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where the tiny models lie
SECONDS = 300  # how long an episode may take before it counts as a hang


def fuzz(
    seed: int, *, episodes: int | None = None, seconds: float | None = None, quiet: bool = True
) -> tuple[Counter[str], dict[int, str]]:
    """Run so many episodes, or for so long; return the figures, and by seed what went wrong."""
    figures: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    begun_s = printed_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        child = Child(Path(folder), "fuzz.episode", seconds=SECONDS)
        try:
            while episodes is None or figures["episodes"] < episodes:
                if seconds is not None and time.monotonic() - begun_s > seconds:
                    break
                end, text = child.run(str(seed))
                figures["episodes"] += 1
                if end == "right":
                    figures.update(json.loads(text))
                else:
                    wrong[seed] = text
                    print(f"seed {seed}: {text}", file=sys.stderr, flush=True)
                seed += 1
                if not quiet and time.monotonic() - printed_s > 60:
                    printed_s = time.monotonic()
                    print(_line(printed_s - begun_s, seed, figures, wrong), flush=True)
        finally:
            child.close()
    if not quiet:
        print(_line(time.monotonic() - begun_s, seed, figures, wrong), flush=True)
    return figures, wrong


def _line(elapsed_s: float, next_seed: int, figures: Counter[str], wrong: dict[int, str]) -> str:
    counted = ", ".join(f"{n:,} {name}" for name, n in figures.items())
    return f"{elapsed_s:.0f} s, next seed {next_seed}: {counted}; {len(wrong)} wrong"


def main() -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="how long (default: until --episodes)")
    parser.add_argument("--episodes", type=int, help="how many (default: until --seconds)")
    parser.add_argument("--seed", type=int, default=1, help="of the first episode")
    options = parser.parse_args()
    episodes = options.episodes or (None if options.seconds else 100)
    _, wrong = fuzz(options.seed, episodes=episodes, seconds=options.seconds, quiet=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
