"""Fuzz what reads a GGUF: this package's own checks, then llama.cpp's loading and a first token.

    python tools/fuzz_gguf.py --inputs 10000 --seed 1 --output figures.json

Seeds are a tiny model of every architecture. Each input is a seed with its keys or tensor infos changed
in one to three places; a child process opens, checks, describes and runs it. What counts is how a
process ends: an answer or a refusal is right, an abort or a signal is not. Of each distinct abort one
change alone is tried again, so that the report names the smallest cause. Same seed, same inputs.
Exits 1 if anything aborted or an exception was no RemoeError.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

import tiny_moe  # noqa: E402
from fuzz.header import Header, parse, write  # noqa: E402
from fuzz.mutations import mutate  # noqa: E402
from fuzz.process import Child  # noqa: E402
from remoe_edge.cli.results import write_json  # noqa: E402


@dataclass
class Death:
    """How a kind of abort came about: the first input that showed it, and how often it came."""

    signal: str
    cause: str
    changes: list[str]
    architecture: str
    number: int
    times: int = 1


@dataclass
class Figures:
    """What a run of the fuzzer found."""

    inputs: int = 0
    seed: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    deaths: dict[str, Death] = field(default_factory=dict)
    bugs: dict[str, list[str]] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """Return the figures as JSON holds them, refusals by how often they came."""
        return {
            **{name: getattr(self, name) for name in ("inputs", "seed", "seconds", "bugs")},
            "ends": dict(self.ends.most_common()),
            "deaths": [asdict(death) for death in self.deaths.values()],
            "refusals": dict(self.refusals.most_common()),
        }

    @property
    def clean(self) -> bool:
        """Say whether nothing died and nothing else went wrong."""
        return not self.deaths and not self.bugs


def seeds(folder: Path) -> list[tuple[Header, bytes]]:
    """Make a tiny model of every architecture, in formats of different block sizes."""
    made = []
    for i, arch in enumerate(tiny_moe.ARCHS):
        quant = ("Q8_0", "F16", "Q4_0")[i % 3]
        path = tiny_moe.make(folder / "seed.gguf", arch, quant)
        made.append(parse(path.read_bytes()))
        path.unlink()
    return made


def fuzz(
    folder: Path,
    inputs: int,
    seed: int,
    begin: int = 0,
    *,
    needless: bool = False,
    quiet: bool = True,
) -> Figures:
    """Run `inputs` inputs, number `begin` first. Each number has its own random state."""
    figures = Figures(seed=seed)
    made = seeds(folder)
    headers = [header for header, _ in made]
    child = Child(folder, "fuzz.child", *(["--needless"] if needless else []))
    path = folder / "input.gguf"
    clock = time.monotonic()
    try:
        for number in range(begin, begin + inputs):
            header, changes = _input(path, made, headers, f"{seed}/{number}")
            end, why = child.run(path)
            figures.inputs += 1
            figures.ends[end] += 1
            if end in ("refused", "llama.cpp"):
                figures.refusals[_kind(why, path)] += 1
            elif end == "needless":
                print(f"needless #{number} {_kind(why, path)}: {'; '.join(changes)}", flush=True)
            elif end == "bug":
                figures.bugs.setdefault(_kind(why, path), changes)
            elif end == "died":
                if len(changes) > 1 and why not in figures.deaths:
                    for only in range(len(changes)):
                        _, alone = _input(path, made, headers, f"{seed}/{number}", only)
                        if child.run(path) == (end, why):
                            changes = alone
                            break
                _remember(figures, why, changes, header, number)
            if not quiet and figures.inputs % 500 == 0:
                print(f"{figures.inputs}: {dict(figures.ends)}", file=sys.stderr, flush=True)
    finally:
        child.close()
    figures.seconds = round(time.monotonic() - clock, 1)
    return figures


def _input(
    path: Path,
    made: Sequence[tuple[Header, bytes]],
    headers: Sequence[Header],
    name: str,
    only: int | None = None,
) -> tuple[Header, list[str]]:
    """Write the input of that name, with all of its changes or one alone; return what they are."""
    draw = random.Random(name)
    header, data = draw.choice(made)
    header = header.copy()
    changes = mutate(header, draw, headers, only)
    path.write_bytes(write(header, data))
    return header, changes


def _kind(why: str, path: Path) -> str:
    """Return a message without what differs from input to input."""
    return re.sub(r"\d+", "N", why.replace(str(path), "FILE"))[:200]


def _remember(figures: Figures, why: str, changes: list[str], header: Header, number: int) -> None:
    known = figures.deaths.get(why)
    if known is None or len(changes) < len(known.changes):
        how, _, cause = why.partition(": ")
        times = 1 if known is None else known.times + 1
        arch = header.architecture.decode("utf-8", "replace")
        figures.deaths[why] = Death(how, cause, changes, arch, number, times)
    else:
        known.times += 1


def main() -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=int, default=0, help="number of the first input")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--keep", type=Path, help="only write input number BEGIN there")
    parser.add_argument(
        "--needless",
        action="store_true",
        help="run refused inputs too: was it right to refuse them?",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        if options.keep:
            made = seeds(Path(name))
            headers = [header for header, _ in made]
            print(_input(options.keep, made, headers, f"{options.seed}/{options.begin}")[1])
            return 0
        figures = fuzz(
            Path(name),
            options.inputs,
            options.seed,
            options.begin,
            needless=options.needless,
            quiet=False,
        )
    print(f"{figures.inputs} inputs in {figures.seconds:.0f} s, seed {figures.seed}")
    for end, n in figures.ends.most_common():
        print(f"{n:8} {end}")
    for death in sorted(figures.deaths.values(), key=lambda each: -each.times):
        print(f"{death.times:8} {death.signal}: {death.cause}")
        print(f"         #{death.number} {death.architecture}: {'; '.join(death.changes)}")
    for bug, changes in figures.bugs.items():
        print(f"BUG {bug}\n    {'; '.join(changes)}")
    if options.output:
        write_json(figures.record(), options.output)
    return 0 if figures.clean else 1


if __name__ == "__main__":
    sys.exit(main())
