"""A folder behind FUSE, spoken to the kernel without a library: files that misbehave as asked.

    with fuse_folder.mounted(source, where, refuse_direct=True):
        ...

Only reading, and only files that are in `source` when they are looked up. While `source` holds a file
named `.fail`, every read fails with EIO. Needs root and /dev/fuse: `mounted` skips the test without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

FORGET, BATCH_FORGET, INTERRUPT, INIT, DESTROY = 2, 42, 36, 26, 38
LOOKUP, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 3, 14, 15, 17, 18, 25
DIRECT_IO = 1  # FOPEN_DIRECT_IO: the kernel keeps no pages
ROOT = 1
SECONDS = 60


class Server:
    """Answers the kernel's requests until the folder is unmounted."""

    def __init__(self, source: Path, device: int, options: set[str]) -> None:
        self._source, self._device, self._options = source, device, options
        self._names: list[str] = []  # node ids from 2 on
        self._n_asked = 0

    def run(self) -> None:
        """Serve."""
        while True:
            try:
                request = os.read(self._device, 1 << 17)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                failure, answer = 0, self._answer(opcode, node, request[40:])
            except OSError as error:
                failure, answer = -(error.errno or errno.EIO), b""
            os.write(self._device, struct.pack("<IiQ", 16 + len(answer), failure, unique) + answer)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 17, 0, 12, 9, 4096, 1, 32, 0, 0) + bytes(
                28
            )
        if opcode == LOOKUP:
            name = os.fsdecode(body.rstrip(b"\0"))
            os.stat(self._source / name)
            if name not in self._names:
                self._names.append(name)
            found = self._names.index(name) + 2
            return struct.pack("<QQQQII", found, 0, 0, 0, 0, 0) + self._attributes(found)
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode == OPEN:
            (flags,) = struct.unpack_from("<I", body)
            if "refuse_direct" in self._options and flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no O_DIRECT here")
            return struct.pack("<QIi", 0, DIRECT_IO if "uncached" in self._options else 0, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            if (self._source / ".fail").exists():
                raise OSError(errno.EIO, "told to")
            with open(self._source / self._names[node - 2], "rb") as file:
                return os.pread(file.fileno(), size, offset)
        if opcode == STATFS:
            return bytes(80)
        if opcode in (RELEASE, FLUSH, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not needed")

    def _attributes(self, node: int) -> bytes:
        self._n_asked += 1
        lie = self._n_asked if "lying_clock" in self._options else 0
        if node == ROOT:
            return struct.pack(
                "<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, *[0] * 5
            )
        found = os.stat(self._source / self._names[node - 2])
        seconds = int(found.st_mtime) + lie
        return struct.pack(
            "<6Q10I", node, found.st_size, found.st_blocks, seconds, seconds, seconds, 0, 0, 0,
            stat.S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0,
        )  # fmt: skip


@contextlib.contextmanager
def mounted(source: Path, where: Path, *options: str) -> Iterator[Path]:
    """Mount `source` at `where`; options: "refuse_direct", "uncached", "lying_clock"."""
    import pytest

    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("FUSE takes root and /dev/fuse")
    process = subprocess.Popen(
        [sys.executable, __file__, str(source), str(where), *options],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if said != "mounted\n":
            pytest.skip(f"FUSE cannot be mounted here: {said.strip()}")
        end = time.monotonic() + SECONDS
        while not os.path.ismount(where):
            assert time.monotonic() < end
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], capture_output=True)
        process.kill()
        process.communicate()


def main() -> None:
    """Mount and serve."""
    source, where, *options = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"bad-days", os.fsencode(where), b"fuse", 0, data.encode()) != 0:
        print(os.strerror(ctypes.get_errno()), flush=True)
        return
    print("mounted", flush=True)
    Server(Path(source), device, set(options)).run()


if __name__ == "__main__":
    main()
