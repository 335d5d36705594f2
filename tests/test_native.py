"""The C++ unit tests: plain, under AddressSanitizer with UBSan, and under ThreadSanitizer.

Each builds the whole core anew, minutes that a newcomer's first run should not take. .ci/run asks for
them, and `make test` for the plain ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SANITIZERS = {"plain": "", "address": "address,undefined", "thread": "thread"}


def _run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )


def _why_not(sanitizers: str, tmp_path: Path) -> str | None:
    """Return what is missing to build with these sanitizers and run, None if nothing is."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no C++ compiler is installed"
    source = tmp_path / "try.cc"
    source.write_text("int main() { return 0; }\n")
    flags = [f"-fsanitize={sanitizers}"] if sanitizers else []
    program = tmp_path / "try"
    built = _run(compiler, *flags, source, "-o", program)
    if built.returncode != 0:
        return f"{compiler} cannot link -fsanitize={sanitizers}: {built.stdout.strip()[-200:]}"
    ran = _run(program)
    if ran.returncode != 0:
        return f"a program with -fsanitize={sanitizers} does not start: {ran.stdout.strip()[-200:]}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", SANITIZERS)
def test_native_unit_tests(kind: str, tmp_path: Path) -> None:
    sanitizers = SANITIZERS[kind]
    missing = _why_not(sanitizers, tmp_path)
    if missing is not None:
        pytest.skip(missing)

    # A tree that stays is built anew only where the sources changed.
    keep = os.access(ROOT, os.W_OK)
    build = ROOT / "build" / f"native-{kind}" if keep else tmp_path / "build"
    configured = _run(
        "cmake", "-S", ROOT, "-B", build, "-G", "Ninja",
        "-DREMOE_EXTENSION=OFF", "-DREMOE_TESTS=ON", f"-DREMOE_SANITIZE={sanitizers}",
        "-DREMOE_DEVICE_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}",
        # Building takes longer than running: without a sanitizer nothing is gained by optimising. With
        # one, nothing is precompiled: that a file leaves out an include is seen there.
        "-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={'-O1' if sanitizers else '-O0'}",
        f"-DREMOE_PRECOMPILE={'OFF' if sanitizers else 'ON'}",
    )  # fmt: skip
    assert configured.returncode == 0, configured.stdout
    built = _run("cmake", "--build", build)
    assert built.returncode == 0, built.stdout[-8000:]

    # The bindings are tested from Python.
    programs = []
    for source in sorted((ROOT / "csrc").glob("**/*_test.cc")):
        own = [room for room in ("device", "plugin") if room in source.relative_to(ROOT).parts]
        room = "/".join(["csrc", *own])
        programs.append(build / room / source.stem)
    assert programs
    # Two at a time: many of them wait more than they compute.
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda program: _run(program, cwd=tmp_path), programs))
    failures = []
    for program, ran in zip(programs, ends, strict=True):
        last = ran.stdout.rstrip().rpartition("\n")[2]
        if ran.returncode != 0 or not last.endswith("passed, 0 failed"):
            failures.append(f"{program.name}: exit {ran.returncode}\n{ran.stdout[-4000:]}")
    assert not failures, "\n".join(failures)
