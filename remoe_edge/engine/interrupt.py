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

    Handlers change for one step and not for a whole answer: between two pieces Ctrl-C is the caller's,
    and answers of several engines may take turns. Outside the main thread, where Python has no signals,
    and for a model that is not streamed (None), the step runs to its end. closing: says whether the
    step was stopped because the engine closes, which is no Ctrl-C.
    """
    if model is None:
        yield
        return
    model.clear_interrupt()  # what came before went to Python's handler
    previous = signal.getsignal(signal.SIGINT)
    # A handler that is no Python function is left alone.
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    pressed: list[int] = []
    # The core is told by a handler of its own, below this one.
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    model.watch_interrupt()
    try:
        yield
    finally:
        _core.unwatch_interrupt()
        signal.signal(signal.SIGINT, previous)
        if pressed or (model.interrupted and not closing()):
            previous(signal.SIGINT, None)
            # A handler that does not raise is content; but the computation was cut short.
            raise KeyboardInterrupt from None
