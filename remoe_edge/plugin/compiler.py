"""Compile the plug-in for one build of ggml, against that build's own headers.

Nothing is guessed: the structs that ggml's public headers leave out come from the ggml-backend-impl.h
of the source tree that the libraries were built from. The pinned llama-cpp-python brings no such file;
its structs are declared in csrc/device/graph/ggml_abi.h.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import remoe_edge
from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.files.atomic import errors_naming
from remoe_edge.plugin import builds, libraries
from remoe_edge.plugin.libraries import Ggml

_IMPL = Path("ggml/src/ggml-backend-impl.h")
_PINNED_HEADERS = ("ggml.h", "ggml-backend.h", "ggml-cpu.h")


@dataclass(frozen=True)
class Source:
    """Hold what a plug-in is compiled against. `tree`: the folder of ggml-backend-impl.h, or None."""

    ggml: Ggml
    includes: tuple[Path, ...]
    tree: Path | None


def source_of(llama_cpp: Path | None, at: Path | None = None) -> Source:
    """Find headers and libraries: of a llama.cpp tree or prefix, or of the pinned llama-cpp-python.

    `at`: the folder of the libraries, if they do not lie below `llama_cpp`. Raises InputError.
    """
    if llama_cpp is None:
        ggml = libraries.of_package() if at is None else libraries.in_folder(at)
        return Source(ggml, (_pinned_include(),), None)
    if not llama_cpp.is_dir():
        raise InputError(f"{llama_cpp} is no folder")
    ggml = libraries.in_folder(at or llama_cpp)
    if (llama_cpp / _IMPL).is_file():
        return Source(ggml, (llama_cpp / "ggml/include",), (llama_cpp / _IMPL).parent)
    include = llama_cpp / "include"
    same = [filecmp.cmp(include / name, _pinned_include() / name, shallow=False)
            for name in _PINNED_HEADERS if (include / name).is_file()]  # fmt: skip
    if len(same) == len(_PINNED_HEADERS) and all(same):
        return Source(ggml, (include,), None)
    raise InputError(
        f"{llama_cpp} has neither ggml/src/ggml-backend-impl.h nor the headers of the pinned "
        "llama-cpp-python: give the source tree that it was built from, and the folder of its "
        "libraries with --libraries"
    )


def _pinned_include() -> Path:
    package = libraries.package_folder()
    for include in (package.parent / "include", package / "include"):
        if (include / "ggml.h").is_file():
            return include
    raise UnsupportedError(f"the headers of llama-cpp-python are not beside {package}")


def sources() -> Path:
    """Find the C++ sources: in an installed package, or in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "source", package.parent.parent):
        if (folder / "csrc" / "plugin" / "CMakeLists.txt").is_file():
            return folder
    raise UnsupportedError("this installation has no C++ sources: install remoe-edge again")


def compile_into(folder: Path, source: Source, say: Callable[[str], None]) -> Path:
    """Compile and install the plug-in for `source` below `folder`; return its core.

    Raises UnsupportedError with the compiler's last words.
    """
    cmake = _tool("cmake")
    if cmake is None:
        raise UnsupportedError("CMake is needed to compile the plug-in: pip install cmake")
    with errors_naming(folder):
        folder.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    say(f"compiling for {source.ggml}: a few minutes on a small board")
    with tempfile.TemporaryDirectory(prefix="remoe-plugin-") as build:
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "REMOE_EXTENSION": "OFF",
            "REMOE_PLUGIN": "ON",
            "REMOE_VERSION": remoe_edge.__version__,
            "REMOE_GGML_VERSION": source.ggml.version,
            "REMOE_GGML_COMMIT": source.ggml.commit,
            "REMOE_GGML_BUILD": source.ggml.build,
            "REMOE_GGML_LIB": str(source.ggml.folder),
            "REMOE_GGML_INCLUDE": ";".join(map(str, source.includes)),
            "REMOE_GGML_TREE": "" if source.tree is None else str(source.tree),
            "REMOE_PLUGIN_FOLDER": ".",
        }
        ninja = _tool("ninja")
        made_by = [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        options = [f"-D{name}={value}" for name, value in settings.items()]
        _run([cmake, "-S", str(sources()), "-B", build, *made_by, *options])
        _run([cmake, "--build", build, "--parallel", "--target", "remoe_entry", "remoe_core"])
        _run([cmake, "--install", build, "--prefix", str(folder)])
    core = folder / "builds" / source.ggml.build / builds.CORE
    _try(folder / builds.ENTRY, source.ggml)
    return core


# The program's part, as small as it gets: it loads every backend, and then the plug-in.
_LOAD = """
import ctypes, sys
from pathlib import Path
for library in ("libggml-base.so", "libggml.so"):
    ggml = ctypes.CDLL(str(Path(sys.argv[1]) / library), ctypes.RTLD_GLOBAL)
ggml.ggml_backend_load_all_from_path(sys.argv[1].encode())
ggml.ggml_backend_load.restype = ctypes.c_void_p
sys.exit(0 if ggml.ggml_backend_load(sys.argv[2].encode()) else 1)
"""


def _try(entry: Path, ggml: Ggml) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(ggml.folder), str(entry)], capture_output=True, text=True,
        errors="replace", timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise UnsupportedError(
            f"the plug-in was built, and {ggml} does not load it: {_end(done.stderr)}"
        )


def _tool(name: str) -> str | None:
    beside = Path(sysconfig.get_path("scripts")) / name
    return shutil.which(name) or (str(beside) if beside.is_file() else None)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UnsupportedError(f"compiling the plug-in failed: {_end(done.stdout + done.stderr)}")


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])
