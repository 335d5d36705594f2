"""Memory that a virtual machine's host has to bring back before it can be used.

A guest tells its host which of its memory is free, and the host gives it to others (free page
reporting, ballooning). Using it again then costs a fault in the host for every page: on one such
machine 2.5 s for each GiB that 0.15 s are enough for elsewhere. Which arm of a bench pays for that is
chance, so memory is touched before each of them, and none does.
"""

from __future__ import annotations

import mmap

import numpy as np

from remoe_edge.machine import memory

_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)


def bring_back(n_bytes: int) -> int:
    """Touch that much memory, or what there is of it, and give it up; return how much it was."""
    free = memory.available()
    n_bytes = min(n_bytes, free.available_bytes - 2 * free.reserve_bytes)
    n_bytes -= n_bytes % mmap.PAGESIZE
    if n_bytes <= 0:
        return 0
    with mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        if _HUGEPAGE is not None:  # as the engine's slab
            pages.madvise(_HUGEPAGE)
        view = np.frombuffer(pages, np.uint8)
        view[:: mmap.PAGESIZE] = 1
        del view
    return n_bytes
