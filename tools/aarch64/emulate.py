#!/usr/bin/env python3
"""Build llama.cpp and remoe-edge for aarch64 on another machine, and run them there under qemu.

    sudo python tools/aarch64/emulate.py FOLDER                everything, from nothing
    sudo python tools/aarch64/emulate.py FOLDER --only chat    what is missing, then that pass alone

On Debian or Ubuntu:

    apt install g++-aarch64-linux-gnu qemu-user-static debootstrap git python3-venv

FOLDER takes some 3 GB. What was built stays there, and a run that was cut off goes on where it was;
`--again STEP` does a step once more. FOLDER/results.json holds what came of each pass. The exit status
is 1 if one failed. It needs root: for chroot, mounts of its own, and the rule by which the kernel has
qemu run aarch64 programs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from aarch64 import root as system
from aarch64.build import Build
from aarch64.cxx_tests import SANITIZERS, run_cxx_tests
from aarch64.passes import ORIN, Pass, all_passes
from aarch64.steps import Place, StepError

STEPS = ("tools", "root", "llama-source", "llama", "core", "packages", "site", "newer")
_COUNTED = re.compile(r"(\d+) (passed|failed|skipped|errors?)")
# Python of Debian's suites.
_PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}


@dataclass(frozen=True)
class Result:
    """What came of a pass; `counts` are pytest's, or test programs."""

    name: str
    cpu: str
    passed: bool
    seconds: int
    counts: dict[str, int]
    said: str


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="emulate.py", description="Build for aarch64 and run under qemu."
    )
    names = [each.name for each in all_passes()] + [f"cxx-{name}" for name in SANITIZERS]
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where everything is built")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--suite", choices=sorted(_PYTHONS), default="bookworm", help="of Debian")
    parser.add_argument(
        "--only", action="append", choices=names, default=[], metavar="PASS",
        help=f"run this pass; may be repeated. Passes: {', '.join(names)}",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="append", choices=STEPS, default=[], metavar="STEP",
        help=f"do this step again. Steps: {', '.join(STEPS)}",
    )  # fmt: skip
    parser.add_argument("--build-only", action="store_true", help="run nothing")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error("--jobs must be at least 1")
    return chosen


class Machine:
    """Own what is built in a place, and the emulated system that it is installed in."""

    def __init__(self, place: Place, suite: str) -> None:
        wanted, found = _PYTHONS[suite], ".".join(map(str, sys.version_info[:2]))
        if found != wanted:
            raise StepError(
                f"Debian {suite} has Python {wanted}, and this is {found}: use python{wanted}"
            )
        self.place, self.build, self.root = place, Build(place), system.Root(place, suite)
        self._site, self._newer = self.root.path / "site", self.root.path / "newer"

    def prepare(self) -> None:
        """Build and install what is not there yet."""
        place, build = self.place, self.build
        place.once("tools", build.host)
        place.once("root", self.root.make)
        place.once("llama-source", build.fetch_llama)
        place.once("llama", build.llama)
        place.once("core", build.core)
        place.once("packages", lambda: build.packages(system.PYTHON_PACKAGES, self._site))
        place.once("site", self._fill)

    def prepare_newer(self) -> None:
        """Install everything a second time, with kernels for newer processors."""
        self.place.once("newer", self._fill_newer)

    def _fill(self) -> None:
        wheels = [self.build.wheel("llama_cpp_python"), self.build.wheel("remoe_edge")]
        self.root.install(wheels, self._site)
        self.root.copy_project(self.root.path / "project")

    def _fill_newer(self) -> None:
        library = self.build.newer_kernels()
        self.place.command("newer", ["rm", "-rf", self._newer])
        self.place.command("newer", ["cp", "-a", self._site, self._newer])
        for old in (self._newer / "llama_cpp/lib").glob("libggml-cpu.so*"):
            old.unlink()
            self.place.command("newer", ["cp", "-L", library, old])


def counted(last: str) -> dict[str, int]:
    """Read pytest's closing line."""
    return {word: int(n) for n, word in _COUNTED.findall(last)}


def run(each: Pass, root: system.Root, log: Path) -> Result:
    """Run a pass; everything that it says goes to its log."""
    begin = time.monotonic()
    with log.open("wb") as out:
        done = subprocess.run(
            root.words(each.command, "/project/tests"), env=system.inside(each.variables()),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    seconds = round(time.monotonic() - begin)
    text = log.read_text(errors="replace").rstrip()
    last = text.rpartition("\n")[2]
    counts = {}
    if each.is_pytest:
        counts = counted(last)
    passed = (
        done.returncode == 0 and each.says in text and (not each.is_pytest or "passed" in counts)
    )
    return Result(each.name, each.cpu, passed, seconds, counts, last)


def main(arguments: list[str] | None = None) -> int:
    """Build, run, and say what came of it."""
    chosen = parse(arguments)
    if os.geteuid() != 0:
        print("emulate.py needs root: sudo python tools/aarch64/emulate.py ...", file=sys.stderr)
        return 2
    place = Place(chosen.folder, chosen.jobs)
    for step in chosen.again:
        place.forget(step)
    passed = True
    try:
        with system.emulated():
            machine = Machine(place, chosen.suite)
            machine.prepare()
            for result in [] if chosen.build_only else results(machine, set(chosen.only)):
                print(_line(result), flush=True)
                passed = passed and result.passed
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if passed else 1


def results(machine: Machine, only: set[str]) -> Iterator[Result]:
    """Run the passes that are named, all if none is; yield what came of each, and keep it in a file."""
    place = machine.place
    record = place.folder / "results.json"
    kept = json.loads(record.read_text()) if record.exists() else {}
    for result in _run_all(machine, only):
        kept[result.name] = asdict(result)
        record.write_text(json.dumps(kept, indent=1) + "\n")
        yield result


def _run_all(machine: Machine, only: set[str]) -> Iterator[Result]:
    for each in all_passes():
        if only and each.name not in only:
            continue
        if each.newer_kernels:
            machine.prepare_newer()
        print(f"{each.name} on {each.cpu} ...", flush=True)
        yield run(each, machine.root, machine.place.folder / "logs" / f"pass-{each.name}.log")
    for kind in SANITIZERS:
        name = f"cxx-{kind}"
        if only and name not in only:
            continue
        print(f"{name} ...", flush=True)
        counts, seconds = run_cxx_tests(kind, machine.place, machine.build, machine.root)
        yield Result(name, ORIN, counts["failed"] == 0, seconds, counts, "")


def _line(result: Result) -> str:
    counts = ", ".join(f"{n} {word}" for word, n in result.counts.items()) or result.said[:200]
    return f"{result.name}: {'passed' if result.passed else 'FAILED'}, {result.seconds} s: {counts}"


if __name__ == "__main__":
    sys.exit(main())
