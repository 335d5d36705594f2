"""Ctrl-C while llama.cpp computes: it stops at the next layer, and KeyboardInterrupt follows.

Python would raise at the first line of Python that runs, which is llama.cpp's log callback: there
the exception is lost, and its traceback is printed. So its handler waits until llama.cpp returns.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

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


class Interrupts:
    """Watch for Ctrl-C while open.

    Outside the main thread, where Python has no signals, and for a model that is not streamed, it
    does nothing.
    """

    def __init__(self, model: StreamedModel | None) -> None:
        self._model = model
        self._previous: Any = None
        self._computing = False

    def __enter__(self) -> Interrupts:
        if self._model is None:
            return self
        self._model.clear_interrupt()
        previous = signal.getsignal(signal.SIGINT)
        # A handler that is no Python function is left alone.
        if threading.current_thread() is threading.main_thread() and callable(previous):
            self._previous = previous
            signal.signal(signal.SIGINT, self._on_signal)
            self._model.watch_interrupt()
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            _core.unwatch_interrupt()
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The core has been told already, by a handler of its own.
        if not self._computing:
            self._previous(number, frame)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Hold Ctrl-C back while llama.cpp computes, and raise KeyboardInterrupt after it."""
        if self._model is None or self._previous is None:
            yield
            return
        self._model.clear_interrupt()  # what came before went to Python's handler
        self._computing = True
        try:
            yield
        finally:
            self._computing = False
            if self._model.interrupted:
                self._previous(signal.SIGINT, None)
                # A handler that does not raise is content; but the computation was cut short.
                raise KeyboardInterrupt from None
