"""Lock what a model has loaded, where memory can be swapped: dense weights, KV cache, code.

The slab locks itself (csrc/runtime/slab.h). llama.cpp's own memory is locked as the kernel has it,
whatever was mapped when the model is loaded; what is not touched yet is locked when it is. Without
swap there is nothing to do, and nothing is done.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from remoe_edge.machine.block_device import swaps
from remoe_edge.machine.cgroups import ROOT

_MCL_CURRENT, _MCL_ONFAULT = 1, 4


def _mlockall(flags: int) -> int:
    """Call the kernel; return its error number, 0 for none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.mlockall(flags) == 0 else ctypes.get_errno()


def lock_loaded(root: Path = ROOT, mlockall: Callable[[int], int] = _mlockall) -> str | None:
    """Lock everything that is mapped now, if there is swap; return a note where that is refused."""
    found = swaps(root)
    if not found:
        return None
    error = mlockall(_MCL_CURRENT | _MCL_ONFAULT)
    if error == 0:
        return None
    names = ", ".join(each.name for each in found)
    return (
        f"dense weights are not locked ({os.strerror(error)}) and may be swapped to {names}: raise "
        "`ulimit -l`, or `sudo swapoff -a`"
    )
