"""What memory the cache may have, and how the kernel gives it."""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

from remoe_edge.inspect.doctor.check import OFF, OK, Check
from remoe_edge.machine import kernel_files, memory
from remoe_edge.units import MIB, mib

_CAP_IPC_LOCK = 14
_MADV_POPULATE_WRITE = 23


def checks() -> list[Check]:
    """Check locking, huge pages, populating ahead of reads and free memory."""
    return [_memlock(), _huge_pages(), _populating(), _memory()]


def _memlock() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _capable(_CAP_IPC_LOCK):
        return Check("memlock", OK, "this process may lock any amount of memory")
    if soft == resource.RLIM_INFINITY:
        return Check("memlock", OK, "no limit")
    return Check(
        "memlock", OFF, f"{mib(soft)} at most: a bigger cache is not locked, and may be swapped",
        "ulimit -l unlimited, or memlock in /etc/security/limits.conf",
    )  # fmt: skip


def _capable(bit: int) -> bool:
    for line in kernel_files.text(Path("/proc/self/status")).splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def _huge_pages() -> Check:
    setting = kernel_files.word(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    if not setting:
        return Check(
            "huge pages", OFF, "this kernel offers no transparent huge pages",
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        )  # fmt: skip
    chosen = setting.partition("[")[2].partition("]")[0]
    if chosen in ("always", "madvise"):
        return Check("huge pages", OK, f"transparent, on {chosen}")
    return Check(
        "huge pages", OFF, f"switched to {chosen}: the cache lies in {mmap.PAGESIZE // 1024} KiB pages",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )  # fmt: skip


def _populating() -> Check:
    """Check for what csrc/runtime/populator.h asks of the kernel."""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        return Check(
            "pages ahead", OFF,
            f"no MADV_POPULATE_WRITE ({error.strerror}): reads wait for the pages of a filling cache",
            "Linux 5.14 or newer",
        )  # fmt: skip
    return Check("pages ahead", OK, "a filling cache has its pages made present ahead of its reads")


def _memory() -> Check:
    room = memory.available()
    state = OK if room.available_bytes >= 256 * MIB else OFF
    advice = "" if state == OK else "end other programs, or raise the limit"
    return Check("memory", state, f"{mib(room.available_bytes)} by {room.limited_by}", advice)
