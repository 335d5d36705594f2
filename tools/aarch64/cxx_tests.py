"""The C++ unit tests on the emulated machine, plain and with sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from aarch64.root import inside
from aarch64.steps import PROJECT

if TYPE_CHECKING:
    from aarch64.build import Build
    from aarch64.root import Root
    from aarch64.steps import Place

SANITIZERS = {"plain": "", "undefined": "undefined", "address": "address,undefined"}
# qemu-user has no ptrace, by which leaks are looked for.
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "LD_LIBRARY_PATH": "/site/llama_cpp/lib", "QEMU_CPU": "cortex-a76",
}  # fmt: skip
_SECONDS = 1800


def run_cxx_tests(kind: str, place: Place, build: Build, root: Root) -> tuple[dict[str, int], int]:
    """Build and run all test programs; return how many passed and failed, and the seconds of running."""
    built = build.cxx_tests(SANITIZERS[kind])
    inner = root.path / "cxx" / kind
    shutil.rmtree(inner, ignore_errors=True)
    inner.mkdir(parents=True)
    counts = {"passed": 0, "failed": 0}
    begin = time.monotonic()
    with (place.folder / "logs" / f"cxx-{kind}.log").open("w") as log:
        for source in sorted((PROJECT / "csrc").glob("**/*_test.cc")):
            program = next((path for path in built.rglob(source.stem) if path.is_file()), None)
            if program is None:
                counts["failed"] += 1
                log.write(f"{source.stem}: was not built\n")
                continue
            shutil.copy2(program, inner / source.stem)
            said, status = _run(root, f"/cxx/{kind}/{source.stem}", f"/cxx/{kind}")
            last = said.rstrip().rpartition("\n")[2]
            passed = status == 0 and last.endswith("passed, 0 failed")
            counts["passed" if passed else "failed"] += 1
            log.write(
                f"{source.stem}: {status}, {last}\n" + ("" if passed else said[-4000:] + "\n")
            )
            log.flush()
    return counts, round(time.monotonic() - begin)


def _run(root: Root, program: str, cwd: str) -> tuple[str, int | str]:
    try:
        done = subprocess.run(
            root.words([program], cwd), env=inside(_OPTIONS), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace"), f"no end in {_SECONDS} s"
    return done.stdout.decode(errors="replace"), done.returncode
