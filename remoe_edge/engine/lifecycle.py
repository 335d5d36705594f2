"""When an engine may be used: while it is open, in the process that made it, for one answer at a time.

Every public method of an engine goes in through `reading` or `running`. The native model is freed only
while nobody is inside, so that `close` is safe at any moment: from another thread it stops the step and
waits for it; from within a step (an observer, a signal handler) it takes effect as the step ends.

A forked child has the engine's memory but none of its threads. There an engine refuses everything, and
`keep_forever` sees to it that no destructor waits for a thread that does not exist.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from remoe_edge.errors import InputError, UnsupportedError

BUSY = (
    "this engine is giving an answer: read it to its end, or close() it, before anything else is "
    "computed; one answer at a time"
)
_LOOK_S = 0.1


class Lifecycle:
    """Keep who is inside an engine, and whether it is open. Safe to use from several threads."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()  # its lock may be taken again by the same thread
        self._inside: list[int] = []  # threads, as often as they are inside
        self._computing = False
        self._answer: object | None = None
        self._finish: Callable[[], None] | None = None
        self._finisher: int | None = None  # the thread that frees everything
        self._deferred = self._closed = False

    @property
    def forked(self) -> bool:
        """Say whether this process is not the one that made the engine."""
        return os.getpid() != self._pid

    @property
    def closing(self) -> bool:
        """Say whether the engine is closed, or about to be."""
        return self._finish is not None

    def check(self) -> None:
        """Raise UnsupportedError in a forked child, InputError where the engine is closed."""
        if self.forked:
            raise UnsupportedError(
                f"this engine was made before a fork, by process {self._pid}: its threads are not "
                "here; make an engine in this process, or start processes with 'spawn'"
            )
        if self.closing:
            raise InputError("the engine is closed")

    # --- being inside ---

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Be inside without computing. Raises as `check`."""
        self.check()
        entered = False
        try:  # from here on, so that Ctrl-C at any moment leaves nobody inside
            with self._changed:
                self.check()
                self._inside.append(threading.get_ident())
                entered = True
            yield
        finally:
            if entered:
                self._leave()

    @contextlib.contextmanager
    def running(self, answer: object | None = None) -> Iterator[None]:
        """Be inside and compute, for `answer` or for none.

        Raises as `check`, and InputError while another answer runs or another thread computes.
        """
        self.check()
        entered = False
        try:
            with self._changed:
                self.check()
                if self._answer is not None and self._answer is not answer:
                    raise InputError(BUSY)
                if self._computing:
                    raise InputError(
                        "this engine is at work, in another thread or in the call that led here: one "
                        "answer at a time"
                    )
                self._inside.append(threading.get_ident())
                self._computing = entered = True
            yield
        finally:
            if entered:
                self._leave(computing=True)

    def begin(self, answer: object) -> None:
        """Let `answer` have the engine until `end`; called by who is inside."""
        self._answer = answer

    def end(self, answer: object) -> None:
        """Let others have it."""
        if self._answer is answer:
            self._answer = None

    def check_free(self) -> None:
        """Raise InputError where an answer runs."""
        self.check()
        if self._answer is not None:
            raise InputError(BUSY)

    def _leave(self, *, computing: bool = False) -> None:
        if self.forked:
            return
        with self._changed:
            self._inside.remove(threading.get_ident())
            if computing:
                self._computing = False
            self._changed.notify_all()
            if not self._deferred or self._inside or self._finisher is not None:
                return
            self._finisher = threading.get_ident()
        self._end_it()

    # --- closing ---

    def close(
        self,
        finish: Callable[[], None],
        interrupt: Callable[[], None],
        timeout_s: float | None = None,
    ) -> None:
        """Call `finish` once, when nobody is inside; return when that is done.

        interrupt: ends a step early. From within a step of this thread it returns at once. Does nothing
        in a forked child. With `timeout_s`, gives up when a step takes longer.
        """
        if self.forked:
            return
        begun_s = time.monotonic()
        with self._changed:
            self._finish = self._finish or finish
            while self._finisher is not None or self._inside:
                if self._closed or self._finisher == threading.get_ident():
                    return
                if threading.get_ident() in self._inside:
                    self._deferred = True
                    return
                if self._inside:
                    interrupt()  # again and again: a step that was just beginning has cleared it
                if timeout_s is not None and time.monotonic() - begun_s > timeout_s:
                    return
                self._changed.wait(_LOOK_S)
            self._finisher = threading.get_ident()
        self._end_it()

    def _end_it(self) -> None:
        assert self._finish is not None
        # What it holds, the engine itself, is let go of: this lives until the engine has gone.
        finish, self._finish = self._finish, _finished
        try:
            finish()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()


def _finished() -> None:
    """Do nothing: everything was freed before."""


# --- forks ---


_threaded: weakref.WeakSet[Any] = weakref.WeakSet()
_parallel_pid: int | None = None


def keep_forever(held: object) -> None:
    """Hold a reference that nothing lets go of, not even the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


def keep_in_children(held: object) -> None:
    """Keep an object forever in every child forked from now on: its threads are not there to end."""
    _threaded.add(held)


def check_threads(n_threads: int) -> None:
    """Refuse to compute with several threads in a child of a process that has done so.

    OpenMP's threads do not survive a fork, and its runtime waits for them without end. Raises
    UnsupportedError.
    """
    global _parallel_pid
    if n_threads == 1:
        return
    if _parallel_pid is None:
        _parallel_pid = os.getpid()
    elif _parallel_pid != os.getpid():
        raise UnsupportedError(
            f"process {_parallel_pid} ran an engine before it forked this one, where OpenMP's threads "
            "are missing: set threads=1, or start processes with 'spawn' or 'forkserver'"
        )


def _in_child() -> None:
    for held in list(_threaded):
        keep_forever(held)


os.register_at_fork(after_in_child=_in_child)
