"""Which ggml a program or a folder has: its libraries, and the version and commit they tell."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.plugin.build_id import build_id

# In a process of its own: a library of another build must not come into this one.
_ASK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
for name in ("ggml_version", "ggml_commit"):
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    print(function().decode())
"""
_HEADERS_BYTES = 64 << 10
# A name that ggml's loader of backends holds, and no program beside it.
_READ_BY_GGML = b"GGML_BACKEND_PATH\0"
_PT_INTERP = struct.pack("<I", 3)
_LISTED = re.compile(r"^\s*libggml-base\.so\S* => (/.*?) \(0x", re.M)


@dataclass(frozen=True)
class Ggml:
    """Hold a build of ggml: what its libraries say of it, and the folder where they lie.

    `id`: the first eight bytes of the build ID of its libggml-base.so, or empty.
    """

    version: str
    commit: str
    folder: Path
    id: str = ""

    @property
    def build(self) -> str:
        """Name the folder that its plug-in lies in, as csrc/plugin/entry/entry.c does."""
        return _file_name("-".join(filter(None, (self.version, self.commit, self.id))))

    @property
    def packaged_build(self) -> str:
        """Name the folder of the plug-in that the package brings: each pip compiles its own ggml."""
        return _file_name(f"{self.version}-{self.commit}")

    @property
    def is_packaged(self) -> bool:
        """Say whether it is llama-cpp-python's own."""
        return self.folder.parts[-2:] == ("llama_cpp", "lib")

    def __str__(self) -> str:
        return f"ggml {self.version} (commit {self.commit}, build {self.id or 'unknown'})"


def _file_name(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z._-]", "_", text)


def ask(library: Path) -> Ggml:
    """Ask a libggml-base.so which build it is. Raises UnsupportedError where it does not say."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(library)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    lines = done.stdout.split("\n")
    if done.returncode or len(lines) < 2:
        raise UnsupportedError(
            f"{library} does not say which build it is: a llama.cpp of September 2025 or later is needed"
        )
    return Ggml(lines[0], lines[1], library.resolve().parent, build_id(library)[:16])


def in_folder(folder: Path) -> Ggml:
    """Find the libraries below a folder, the newest if there are several. Raises InputError."""
    found = [path for path in _below(folder) if path.is_file()]
    if not found:
        raise InputError(
            f"no libggml-base.so lies below {folder}: build llama.cpp there first, with "
            "-DBUILD_SHARED_LIBS=ON, or say where with --libraries"
        )
    return ask(max(found, key=lambda path: path.stat().st_mtime))


def _below(folder: Path, depth: int = 5) -> list[Path]:
    found = []
    start = len(folder.parts)
    for here, folders, names in os.walk(folder):
        if len(Path(here).parts) - start >= depth:
            folders.clear()
        if "libggml-base.so" in names:
            found.append(Path(here) / "libggml-base.so")
    return found


def of_package() -> Ggml:
    """Ask the installed llama-cpp-python."""
    return ask(package_folder() / "lib" / "libggml-base.so")


def package_folder() -> Path:
    """Find the installed llama-cpp-python without loading it."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise UnsupportedError("llama-cpp-python is not installed")
    return Path(spec.origin).parent


def of_program(program: str, environment: dict[str, str]) -> tuple[Path, Ggml | None]:
    """Find a program and the ggml it was linked to; None for a script or a program without one.

    Raises InputError where there is no such program.
    """
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        raise InputError(f"there is no program {program}")
    path = Path(found)
    with path.open("rb") as file:
        if not _has_loader(file.read(_HEADERS_BYTES)):
            return path, None
    # What `ldd` does: the loader lists the libraries and ends, before the program begins.
    listed = subprocess.run(
        [str(path)], env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True,
        text=True, errors="surrogateescape", timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    library = _LISTED.search(listed.stdout)
    return path, None if library is None else ask(Path(library[1]))


def _has_loader(begin: bytes) -> bool:
    """Say whether a file is a program that the loader starts: a static one would run, and list nothing.

    begin: the first bytes of the file, with the headers of a 64-bit ELF.
    """
    if begin[:5] != b"\x7fELF\x02" or len(begin) < 64:
        return False
    at, size, n = (*struct.unpack_from("<Q", begin, 32), *struct.unpack_from("<HH", begin, 54))
    kinds = (begin[at + i * size : at + i * size + 4] for i in range(n))
    return any(kind == _PT_INTERP for kind in kinds)


def refuse_static(program: Path) -> None:
    """Raise UnsupportedError for a program that has ggml within it: it can load no plug-in."""
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
            if code.find(_READ_BY_GGML) >= 0:
                raise UnsupportedError(
                    f"{program} was linked to ggml statically and can load no plug-in: "
                    "build llama.cpp with -DBUILD_SHARED_LIBS=ON"
                )
