"""Run Python with a core that is built under AddressSanitizer and UBSan.

    python tools/under_sanitizers.py -m pytest tests/test_faults.py
    python tools/under_sanitizers.py tools/fuzz_engine.py --seconds 600 --seed 1

Builds the core into build/sanitized (the first time takes a quarter of an hour), lays it beside links
to the package's own files, and starts Python with the sanitizers' runtime loaded before everything.
Programs that it starts inherit that. A finding ends the process that has it with status 99, and its
report is on stderr. Leaks are not looked for: Python itself leaves memory to the end of the process.
Needs Python 3.11, CMake, pybind11, and GCC or Clang.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitized"
FOUND = 99  # the status after a finding: a refusal has 1 or 2


def built() -> Path:
    """Build the core, or what of it has changed; return where it is."""
    import pybind11

    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    settings = {
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-O1",
        "CMAKE_BUILD_RPATH": str(Path(spec.origin).parent / "lib"),
        "REMOE_PLUGIN": "OFF",
        "REMOE_SANITIZE": "address,undefined",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    if shutil.which("ccache"):
        settings["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
    options = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, *options], check=True, stdout=sys.stderr)
    jobs = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", BUILD, "--target", "_core", "--parallel", jobs]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return next((BUILD / "csrc" / "bindings").glob("_core*.so"))


def package_with(core: Path, folder: Path) -> Path:
    """Lay a core beside links to the package's files; return what to put on Python's path."""
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "remoe_edge"
    package.mkdir(parents=True)
    for each in (ROOT / "remoe_edge").iterdir():
        if not each.name.startswith("_core.cpython") and each.name != "__pycache__":
            (package / each.name).symlink_to(each)
    shutil.copy(core, package / core.name)
    return folder


def environment(path: Path) -> dict[str, str]:
    """Give the environment of a Python that uses the package there."""
    compiler = os.environ.get("CXX", "c++")
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")  # the second has what the first looks for
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Tests take memory away: what cannot be had is to fail as it does elsewhere.
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:exitcode={FOUND}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={FOUND}",
        "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
        "PYTHONSAFEPATH": "1",  # else `-m` finds the checkout's package before this one
        "PYTHONMALLOC": "malloc",  # so that what Python owns is watched, too
    }


def main() -> None:
    """Run from the command line."""
    if len(sys.argv) < 2:
        sys.exit(str(__doc__))
    if sys.version_info < (3, 11):
        sys.exit("Python 3.11 is needed: older ones find the checkout's package first")
    path = package_with(built(), BUILD / "python")
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment(path))


if __name__ == "__main__":
    main()
