"""Try every two of the engine's options together.

    python tools/option_pairs.py                       # all, in some minutes; Ctrl-C, and again goes on
    python tools/option_pairs.py --only draft=on       # all pairs with an option
    python tools/option_pairs.py --trial draft=on n_batch=5

tools/pairs/options.py lists the options, tools/pairs/trial.py says what is asked of an engine with two of
them and what must hold. A trial runs in a child process, so that a crash or a hang is a finding too. What
came of each is kept in a file of JSON lines (--record), and is not tried again. Exits 1 if a promise was
broken, or two options were refused, or not, that the list says otherwise of.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from fuzz.process import Child  # noqa: E402
from pairs.options import pairs, refused, singles  # noqa: E402

FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where the tiny models lie
SECONDS = 300  # how long a trial may take before it counts as a hang

Outcome = tuple[str, str]  # "right", "refused", "wrong" or "died", and why


def tried(
    trials: Iterable[Sequence[str]], record: Path | None = None, *, quiet: bool = True
) -> dict[tuple[str, ...], Outcome]:
    """Try sets of options; return how each ended. record: keeps that, and what it has is not tried."""
    found = {} if record is None else _read(record)
    begun_s = printed_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        child = Child(Path(folder), "pairs.child", folder, seconds=SECONDS)
        try:
            for names in map(tuple, trials):
                if names in found:
                    continue
                found[names] = child.run(json.dumps({"options": names}))
                if record is not None:
                    with record.open("a") as lines:
                        lines.write(json.dumps([names, *found[names]]) + "\n")
                if found[names][0] not in ("right", "refused"):
                    print(f"{' '.join(names)}: {': '.join(found[names])}", file=sys.stderr)
                if not quiet and time.monotonic() - printed_s > 60:
                    printed_s = time.monotonic()
                    print(f"{printed_s - begun_s:.0f} s: {_counted(found)}", flush=True)
        finally:
            child.close()
    return found


def _read(record: Path) -> dict[tuple[str, ...], Outcome]:
    if not record.is_file():
        return {}
    rows = map(json.loads, record.read_text().splitlines())
    return {tuple(names): (end, text) for names, end, text in rows}


def _counted(found: dict[tuple[str, ...], Outcome]) -> str:
    counts = Counter(end for end, _ in found.values())
    return f"{len(found):,} tried: " + ", ".join(f"{n:,} {end}" for end, n in counts.items())


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, help="keeps what came of each, and goes on from there"
    )
    parser.add_argument("--only", action="append", default=[], help="only pairs with this option")
    parser.add_argument("--trial", nargs="+", help="one trial of these options")
    parser.add_argument("--singles", action="store_true", help="each option alone")
    options = parser.parse_args()
    every: Iterable[Sequence[str]] = pairs()
    if options.trial:
        every = [options.trial]
    elif options.singles:
        every = [[], *([each] for each in singles())]
    for only in options.only:
        every = [each for each in every if only in each or only in {n.split("=")[0] for n in each}]
    found = tried(every, options.record, quiet=False)
    print(_counted(found))
    others = []
    for names, (end, text) in found.items():
        if end == "refused":
            print(f"{' '.join(names)}: {text}")
        if end != ("refused" if len(names) == 2 and refused(*names) else "right"):
            others.append(" ".join(names))
    if others:
        print(f"not as it should be: {'; '.join(others)}", file=sys.stderr)
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
