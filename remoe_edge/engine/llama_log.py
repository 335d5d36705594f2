"""Where llama.cpp's log goes.

Imports llama_cpp only when asked: the engine must come into a process in its own order (native.py),
and a stock arm of a benchmark must not bring the engine in at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

Listener = Callable[[int, str], None]

_log: Any = None  # the callback that llama.cpp points to; None is the package's own


def log_to(on_line: Listener | None) -> None:
    """Send llama.cpp's log to a function of level and line (None: to the package's logger again).

    llama.cpp has one log in a process and keeps a bare pointer to its callback, so the callback is kept
    here: had it gone with whoever set it, the next line would have ended the process.
    """
    import llama_cpp

    if on_line is None:
        _set(None)
    else:
        _set(
            llama_cpp.llama_log_callback(
                lambda level, text, _: on_line(level, text.decode("utf-8", "replace"))
            )
        )


def _set(callback: Any) -> None:
    global _log
    import llama_cpp

    llama_cpp.llama_log_set(callback or llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
    _log = callback


@contextlib.contextmanager
def log_of_this_thread_to(on_line: Listener) -> Iterator[None]:
    """Send what this thread's calls log to a function; other threads' lines go to the package's logger.

    Somebody may load a model of their own meanwhile: its figures are not this one's. Blocks may lie in
    each other, but not in two threads at once.
    """
    import llama_cpp

    mine, before = threading.get_ident(), _log

    def dispatch(level: int, line: str) -> None:
        if threading.get_ident() == mine:
            on_line(level, line)
        else:
            llama_cpp._logger.llama_log_callback(level, line.encode(), None)

    log_to(dispatch)
    try:
        yield
    finally:
        _set(before)
