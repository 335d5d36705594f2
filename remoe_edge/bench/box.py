"""A box for a process: a memory limit, a cap on reads, and the kernel's account of what it used.

As root a box is a cgroup (version 1 or 2) that lasts as long as a `with`; without root it is a scope
of the user's systemd. The page cache that a process fills counts, so a box is what a board with that
much memory would be. Swap is off inside.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.machine import kernel_files
from remoe_edge.machine.disk import Disk
from remoe_edge.units import mib

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "remoe-edge-bench"
_numbers = itertools.count()

# Joins the groups whose files come before `--`, then becomes the command after it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'


class NoBoxError(UnsupportedError):
    """Say why no limit can be set here, and the way out."""


@dataclass(frozen=True)
class Limits:
    """Hold what a box keeps a process to; None: no limit."""

    memory_bytes: int | None = None
    read_bytes_per_s: int | None = None

    @property
    def any(self) -> bool:
        """Say whether there is anything to keep to."""
        return self.memory_bytes is not None or self.read_bytes_per_s is not None


@dataclass(frozen=True)
class Account:
    """Hold the kernel's figures: the highest use so far, who kept it, and how many it killed."""

    peak_bytes: int | None
    source: str
    oom_kills: int = 0


class Box:
    """No box: a process as any other, whose own peak is what the kernel knows of it."""

    how = "none"
    usage_file: Path | None = None

    def command(self, command: Sequence[str]) -> list[str]:
        """Give the command line that runs `command` inside."""
        return list(command)

    def check(self, pid: int) -> None:
        """Make sure that a running process is held. Raises NoBoxError."""

    def account(self, pid: int) -> Account:
        """Read the account of a process that still runs."""
        for line in kernel_files.text(Path(f"/proc/{pid}/status")).splitlines():
            if line.startswith("VmHWM:"):
                return Account(int(line.split()[1]) * 1024, "VmHWM")
        return Account(None, "none")

    def oom_kills(self) -> int | None:
        """Count what the kernel killed inside, also once it is dead; None where nobody knows."""
        return None


@dataclass(frozen=True)
class _Files:
    """Name what a version of cgroups calls its files."""

    limit: str
    swap: str
    usage: str
    peak: str
    events: str


_V1 = _Files(
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.usage_in_bytes",
    "memory.max_usage_in_bytes", "memory.oom_control",
)  # fmt: skip
_V2 = _Files("memory.max", "memory.swap.max", "memory.current", "memory.peak", "memory.events")


class Cgroup(Box):
    """A control group of its own, made and removed as root."""

    def __init__(self, limits: Limits, disk: Disk | None, root: Path) -> None:
        name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._folders: list[Path] = []
        if (root / "memory" / _V1.limit).exists():
            self.how, self._files = "cgroup v1", _V1
            self.folder = root / "memory" / name
            io_folder, io_file = root / "blkio" / name, "blkio.throttle.read_bps_device"
            cap = "{disk} {rate}"
        elif (root / "cgroup.controllers").exists():
            self.how, self._files = "cgroup v2", _V2
            self.folder = io_folder = root / name
            io_file, cap = "io.max", "{disk} rbps={rate}"
            _delegate(root, "memory")
            if limits.read_bytes_per_s is not None:
                _delegate(root, "io")
        else:
            raise NoBoxError(f"{root} holds no memory controller")
        try:
            self._make(self.folder)
            if limits.memory_bytes is not None:
                (self.folder / self._files.limit).write_text(str(limits.memory_bytes))
                self._no_swap(limits.memory_bytes)
            if limits.read_bytes_per_s is not None:
                if disk is None:
                    raise NoBoxError(
                        "no block device is known for the model: its reads have no cap"
                    )
                self._make(io_folder)
                line = cap.format(disk=disk.number, rate=limits.read_bytes_per_s)
                (io_folder / io_file).write_text(line)
        except OSError as error:
            self.close()
            raise NoBoxError(f"{error.filename}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        self.usage_file = self.folder / self._files.usage

    def _make(self, folder: Path) -> None:
        if folder not in self._folders:
            folder.mkdir()
            self._folders.append(folder)

    def _no_swap(self, limit_bytes: int) -> None:
        # Version 1 counts memory and swap together, version 2 swap alone; kernels without swap
        # accounting have neither file.
        value = limit_bytes if self._files is _V1 else 0
        with contextlib.suppress(OSError):
            file = self.folder / self._files.swap
            if file.exists():
                file.write_text(str(value))

    def command(self, command: Sequence[str]) -> list[str]:
        procs = [str(folder / "cgroup.procs") for folder in self._folders]
        return ["/bin/sh", "-c", _JOIN, "sh", *procs, "--", *command]

    def account(self, pid: int = 0) -> Account:
        peak = kernel_files.number(self.folder / self._files.peak)
        if peak is None:  # before Linux 5.19 version 2 keeps no peak
            return super().account(pid)
        return Account(peak, self.how, self.oom_kills() or 0)

    def oom_kills(self) -> int | None:
        with contextlib.suppress(OSError):
            for line in (self.folder / self._files.events).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return None

    def close(self) -> None:
        """Kill what is left inside and remove the groups."""
        for folder in reversed(self._folders):
            _remove(folder)
        self._folders.clear()


class Scope(Box):
    """A transient scope of the user's systemd."""

    how = "systemd-run --user"

    def __init__(self, limits: Limits, disk: Disk | None) -> None:
        if shutil.which("systemd-run") is None:
            raise NoBoxError("there is no systemd-run")
        if limits.read_bytes_per_s is not None and disk is None:
            raise NoBoxError("no block device is known for the model: its reads have no cap")
        self._limits, self._disk = limits, disk
        self._options = ["-p", "MemorySwapMax=0", "-p", "MemoryAccounting=yes"]
        if limits.memory_bytes is not None:
            self._options += ["-p", f"MemoryMax={limits.memory_bytes}"]
        if limits.read_bytes_per_s is not None and disk is not None:
            self._options += ["-p", f"IOReadBandwidthMax={disk.node} {limits.read_bytes_per_s}"]
        try:
            tried = subprocess.run(
                self.command(["true"]),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoBoxError(f"systemd-run --user: {error}") from error
        if tried.returncode != 0:
            said = tried.stderr.strip().splitlines()
            raise NoBoxError(f"systemd-run --user: {said[-1] if said else tried.returncode}")

    def command(self, command: Sequence[str]) -> list[str]:
        return [
            "systemd-run", "--user", "--scope", "--quiet", "--collect", *self._options, "--",
            *command,
        ]  # fmt: skip

    def check(self, pid: int) -> None:
        # A user's systemd accepts limits of controllers that were not delegated to it, and
        # ignores them.
        folder = _scope_of(pid)
        limit = self._limits.memory_bytes
        held = None if folder is None else kernel_files.number(folder / _V2.limit)
        if limit is not None and (held is None or held > limit):
            raise NoBoxError(f"systemd took the limit of {mib(limit)} and does not keep it")
        rate = self._limits.read_bytes_per_s
        if rate is not None and self._disk is not None:
            caps = kernel_files.text(folder / "io.max") if folder is not None else ""
            if not any(
                line.startswith(self._disk.number) and f"rbps={rate}" in line.split()
                for line in caps.splitlines()
            ):
                raise NoBoxError("systemd took the cap on reads and does not keep it")

    def account(self, pid: int) -> Account:
        folder = _scope_of(pid)
        peak = None if folder is None else kernel_files.number(folder / _V2.peak)
        return super().account(pid) if peak is None else Account(peak, self.how)


@contextlib.contextmanager
def boxed(limits: Limits, disk: Disk | None = None, *, root: Path = CGROUPS) -> Iterator[Box]:
    """Make a box for one process after another; it is gone when the block ends, and all in it.

    disk: what a cap on reads is for. Without limits the kernel keeps an account where it may, and
    nothing is held. Raises NoBoxError when the limits cannot be set.
    """
    if limits.memory_bytes is not None and limits.memory_bytes < 1:
        raise InputError("a memory limit is at least a byte")
    # A bandwidth of 0 would lift a cgroup's cap.
    if limits.read_bytes_per_s is not None and limits.read_bytes_per_s < 1:
        raise InputError("a read bandwidth is at least a byte a second")
    refusals = []
    box: Box
    try:
        box = Cgroup(limits, disk, root)
    except NoBoxError as error:
        refusals.append(f"no cgroup of our own ({error})")
        if not limits.any:
            box = Box()
        else:
            try:
                box = Scope(limits, disk)
            except NoBoxError as refusal:
                refusals.append(f"no scope of systemd's either ({refusal})")
                raise NoBoxError(
                    f"no limit can be set here: {', '.join(refusals)}; run as root, or in a session "
                    "of systemd that has the memory and io controllers"
                ) from None
    try:
        yield box
    finally:
        if isinstance(box, Cgroup):
            box.close()


def sweep(root: Path = CGROUPS) -> None:
    """Remove the empty groups of runs that were killed before they could."""
    for folder in [*root.glob(f"*/{PREFIX}-*"), *root.glob(f"{PREFIX}-*")]:
        pid = folder.name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _delegate(root: Path, controller: str) -> None:
    if controller not in kernel_files.text(root / "cgroup.controllers").split():
        raise NoBoxError(f"{root} has no {controller} controller")
    file = root / "cgroup.subtree_control"
    if controller not in kernel_files.text(file).split():
        try:
            file.write_text(f"+{controller}")
        except OSError as error:
            raise NoBoxError(f"{file}: {error.strerror}") from error


def _remove(folder: Path) -> None:
    for _ in range(100):
        for pid in kernel_files.text(folder / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            try:
                folder.rmdir()
            except OSError:  # the dead leave a moment later
                time.sleep(0.05)
                continue
        return


def _scope_of(pid: int) -> Path | None:
    for line in kernel_files.text(Path(f"/proc/{pid}/cgroup")).splitlines():
        if line.startswith("0::"):
            return CGROUPS / line[3:].lstrip("/")
    return None
