"""Where llama.cpp's log goes.

Imports llama_cpp only when asked: the engine must come into a process in its own order (native.py),
and a stock arm of a benchmark must not bring the engine in at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_log: Any = None  # the callback that llama.cpp points to


def log_to(on_line: Callable[[int, str], None] | None) -> None:
    """Send llama.cpp's log to a function of level and line (None: to the package's logger again).

    llama.cpp has one log in a process and keeps a bare pointer to its callback, so the callback is kept
    here: had it gone with whoever set it, the next line would have ended the process.
    """
    global _log
    import llama_cpp

    if on_line is None:
        callback = llama_cpp._logger.llama_log_callback
    else:
        callback = llama_cpp.llama_log_callback(
            lambda level, text, _: on_line(level, text.decode("utf-8", "replace"))
        )
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    _log = callback
