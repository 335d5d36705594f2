"""Ctrl-C while llama.cpp computes: it stops at the next layer, and KeyboardInterrupt follows.

Python would raise at the first line of Python that runs, which is llama.cpp's log callback: there
the exception is lost, and its traceback is printed. So its handler waits until llama.cpp returns.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the end of the block; the function given tells whether it came."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
        if pressed:
            previous(pressed[0], None)


@contextlib.contextmanager
def interruptible(
    model: StreamedModel | None, closing: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Hold Ctrl-C back while llama.cpp computes, and raise KeyboardInterrupt after it.

    The handler changes for one step and not for a whole answer: between two pieces Ctrl-C is the caller's,
    and answers of several engines may take turns. Outside the main thread, where Python has no signals,
    and for a model that is not streamed (None), the step runs to its end. closing: says whether the
    step was stopped because the engine closes, which is no Ctrl-C.
    """
    if model is None:
        yield
        return
    model.clear_interrupt()  # what came before went to Python's handler
    if threading.current_thread() is not threading.main_thread() or not model.watch_interrupt():
        yield
        return
    try:
        yield
    finally:
        if _core.unwatch_interrupt() or (model.interrupted and not closing()):
            # Its handler is in its place again, and hears of it now.
            signal.raise_signal(signal.SIGINT)
            # A handler that does not raise is content; but the computation was cut short.
            raise KeyboardInterrupt from None
