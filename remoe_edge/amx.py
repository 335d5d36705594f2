"""Keep llama.cpp off its AMX kernels where its compiler broke them.

GCC before 11.5, 12.4 and 13.3 keeps one pointer's worth of the 64 bytes that `_tile_loadconfig` reads
(GCC bug 114098): loading the tiles then ends the process. llama.cpp takes these kernels for repacked
weights on processors that have AMX.

llama.cpp asks the kernel for the permission to use AMX once, when its CPU backend first lists its
extra buffer types, and does without AMX if that is refused. The kernel refuses it to a process in
which a thread has an alternate signal stack that cannot hold the tiles (x86's xstate documentation).
So `avoid` gives this thread such a stack, has the list made, and takes the stack away again. Nothing else
of the process changes: no filter of system calls that would stay, no byte of llama.cpp's memory.

This module stands below native.py, which calls it before anybody can ask for that list, and it never
loads the engine: stock llama.cpp's processes call it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remoe_edge.errors import UnsupportedError

_MENDED = {11: 5, 12: 4, 13: 3}  # the first good minor version of each
_COMPILER = re.compile(rb"GCC: \([^\0]*?\) (\d+)\.(\d+)")
_CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_SMALL_STACK_BYTES = 2048  # the smallest that the kernel takes; the tiles alone have 8192
REMEDY = (
    "reinstall llama-cpp-python, without pip's cache, with CFLAGS and CXXFLAGS of \"-mno-amx-tile "
    '-mno-amx-int8 -mno-amx-bf16", or with a newer compiler'
)


def refuse_broken() -> None:
    """Raise UnsupportedError where running repacked weights would crash all the same."""
    broken = fault()
    if broken is not None:
        raise UnsupportedError(f"{broken}: run with --no-repack, or {REMEDY}")


def fault() -> str | None:
    """Say in a line why repacked weights would crash here, or None where they do not."""
    broken = compiler_fault()
    if broken is None or avoid():
        return None
    return f"{broken}, and something in this process asked for AMX before remoe-edge did"


@functools.cache
def avoid() -> bool:
    """Have llama.cpp go without AMX if its compiler broke that; tell whether it now does.

    To be called before anything loads a model. Does its work once in a process.
    """
    if compiler_fault() is None:
        return False
    with small_signal_stack(), _without_line(b"AMX is not ready to be used!\n"):
        names = extra_buffer_types()
    return "AMX" not in names


@functools.cache
def compiler_fault() -> str | None:
    """Say in a line what is wrong with the AMX code of the llama.cpp that is loaded; None if nothing."""
    import llama_cpp  # the plain one: stock's process must not load the engine

    if b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info():
        return None
    try:
        versions = compilers(_cpu_library().read_bytes())
    except OSError:
        return None
    for major, minor in versions:
        if breaks_tiles(major, minor):
            return (
                f"llama.cpp was built by GCC {major}.{minor}, whose AMX code crashes on repacked "
                "weights"
            )
    return None


def compilers(library: bytes) -> list[tuple[int, int]]:
    """List the GCC versions that a library names in its comment section; none if clang compiled it.

    There are several where start files or parts of it come from another GCC: any may have
    compiled the AMX code.
    """
    if b"clang version " in library:
        return []
    return sorted({(int(major), int(minor)) for major, minor in _COMPILER.findall(library)})


def breaks_tiles(major: int, minor: int) -> bool:
    """Tell whether that GCC drops a tile's configuration."""
    return minor < _MENDED.get(major, 0)


@contextlib.contextmanager
def small_signal_stack() -> Iterator[None]:
    """Give this thread an alternate signal stack of 2 KiB for as long as the block lasts.

    Signals are held back meanwhile, since their frames may not fit it.
    """
    libc = ctypes.CDLL(None)
    memory = ctypes.create_string_buffer(_SMALL_STACK_BYTES)
    small = _SignalStack(ctypes.addressof(memory), 0, _SMALL_STACK_BYTES)
    found = _SignalStack()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        # A kernel that was told to be strict refuses; then AMX is granted, and `avoid` says so.
        placed = libc.sigaltstack(ctypes.byref(small), ctypes.byref(found)) == 0
        try:
            yield
        finally:
            if placed:
                libc.sigaltstack(ctypes.byref(found), None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def extra_buffer_types() -> list[str]:
    """Name the buffer types of llama.cpp's CPU device besides its own, in its order."""
    lib = _libraries()
    cpu = lib.ggml_backend_dev_by_type(_CPU_DEVICE)
    make_list = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(_lister())
    names: list[str] = []
    types = make_list(cpu)
    while types and types[len(names)]:
        names.append(lib.ggml_backend_buft_name(types[len(names)]).decode())
    return names


def _libraries() -> Any:
    """Give the handle through which the copies of ggml's libraries that llama.cpp uses are found.

    A wheel holds each under three names, as files of their own: loading another name would load
    another copy, with devices of its own.
    """
    import llama_cpp

    lib = llama_cpp.llama_cpp._lib
    lib.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    lib.ggml_backend_dev_by_type.argtypes = [ctypes.c_int]
    lib.ggml_backend_dev_backend_reg.restype = ctypes.c_void_p
    lib.ggml_backend_dev_backend_reg.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
    lib.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.ggml_backend_buft_name.restype = ctypes.c_char_p
    lib.ggml_backend_buft_name.argtypes = [ctypes.c_void_p]
    return lib


def _lister() -> int:
    """Give the address of the CPU backend's function that lists its extra buffer types."""
    lib = _libraries()
    registry = lib.ggml_backend_dev_backend_reg(lib.ggml_backend_dev_by_type(_CPU_DEVICE))
    name = b"ggml_backend_dev_get_extra_bufts"
    return int(lib.ggml_backend_reg_get_proc_address(registry, name))


def _cpu_library() -> Path:
    """Give the file that the CPU backend's code was loaded from."""
    about = _Symbol()
    if ctypes.CDLL(None).dladdr(ctypes.c_void_p(_lister()), ctypes.byref(about)) == 0:
        raise FileNotFoundError("no file is known for the CPU backend")
    return Path(os.fsdecode(about.file))


class _SignalStack(ctypes.Structure):
    """Hold a stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("n_bytes", ctypes.c_size_t))


class _Symbol(ctypes.Structure):
    """Hold a Dl_info."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


@contextlib.contextmanager
def _without_line(line: bytes) -> Iterator[None]:
    """Pass on what this process writes to stderr meanwhile, but for a line of no use to the user."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    said = os.memfd_create("stderr")
    os.dup2(said, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        rest = os.pread(said, os.fstat(said).st_size, 0).replace(line, b"")
        os.close(said)
        if rest:
            os.write(2, rest)
