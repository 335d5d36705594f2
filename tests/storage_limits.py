"""Take from this process what a container or a limit takes: system calls, threads, descriptors.

For tests, in a process of their own: nothing of it can be taken back.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import struct
from pathlib import Path

# The same numbers on x86-64 and aarch64.
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_MODE_FILTER, _EVERY_THREAD = 1, 1
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid(*calls: int, error_number: int = errno.EPERM) -> bool:
    """Have these system calls fail in every thread of this process; False where that cannot be."""
    words = [struct.pack("<HBBI", _LOAD_NUMBER, 0, 0, 0)]
    for at, call in enumerate(calls):
        words.append(struct.pack("<HBBI", _JUMP_IF_EQUAL, len(calls) - at, 0, call))
    words.append(struct.pack("<HBBI", _RETURN, 0, 0, _ALLOW))
    words.append(struct.pack("<HBBI", _RETURN, 0, 0, _FAIL | error_number))
    code = ctypes.create_string_buffer(b"".join(words))
    program = _Program(len(words), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    number = _SECCOMP.get(platform.machine())
    if number is None:
        return False
    return bool(libc.syscall(number, _MODE_FILTER, _EVERY_THREAD, ctypes.byref(program)) == 0)


def leave_address_space(n_bytes: int) -> None:
    """Leave this process so much more, as `ulimit -v` does; a thread takes some 8 MiB for its stack."""
    taken = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, hard))


def no_more_threads() -> bool:
    """Have every new thread fail, by a stack that no memory can hold; False where that cannot be."""
    libc = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(256)  # a pthread_attr_t has 56 or 64 bytes
    if not hasattr(libc, "pthread_setattr_default_np"):
        return False
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 46))
    return bool(libc.pthread_setattr_default_np(attributes) == 0)


def open_descriptors() -> int:
    """Count this process' open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


def leave_descriptors(n: int) -> None:
    """Leave this process so many more open files, as `ulimit -S -n` does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() - 1 + n, hard))
