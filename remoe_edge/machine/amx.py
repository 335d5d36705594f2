"""Whether llama.cpp's AMX kernels can run, as its compiler left them.

GCC before 11.5, 12.4 and 13.3 keeps one pointer's worth of the 64 bytes that `_tile_loadconfig` reads
(GCC bug 114098): loading the tiles is then a segmentation fault. llama.cpp takes these kernels for
rearranged weights on processors that have AMX; weights in file order never come to them.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from remoe_edge.errors import UnsupportedError

_MENDED = {11: 5, 12: 4, 13: 3}  # the first good minor version of each
_COMPILER = re.compile(rb"GCC: \([^)]*\) (\d+)\.(\d+)")
REMEDY = (
    "reinstall llama-cpp-python, without pip's cache, with CFLAGS and CXXFLAGS of \"-mno-amx-tile "
    '-mno-amx-int8 -mno-amx-bf16", or with a newer compiler'
)


def refuse_broken() -> None:
    """Raise UnsupportedError where running rearranged weights would crash."""
    broken = fault()
    if broken is not None:
        raise UnsupportedError(f"{broken}: run with --no-repack, or {REMEDY}")


@functools.cache
def fault() -> str | None:
    """Say in a line why rearranged weights would crash here, or None where they do not."""
    import llama_cpp  # the plain one: stock's process must not load the engine

    if b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info():
        return None
    library = Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"
    try:
        version = compiler(library.read_bytes())
    except OSError:
        return None
    if version is None or not breaks_tiles(*version):
        return None
    major, minor = version
    return (
        f"llama.cpp was built by GCC {major}.{minor}, whose AMX code crashes on rearranged weights"
    )


def compiler(library: bytes) -> tuple[int, int] | None:
    """Return the GCC version that a library names in its comment section."""
    found = _COMPILER.search(library)
    return (int(found[1]), int(found[2])) if found else None


def breaks_tiles(major: int, minor: int) -> bool:
    """Tell whether that GCC drops a tile's configuration."""
    return minor < _MENDED.get(major, 0)
