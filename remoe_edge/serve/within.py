"""Bound how long something may take, without losing a cancellation.

`asyncio.wait_for` of Python 3.10 and 3.11 forgets that it was cancelled when what it waits for ends in
the same moment. A stream whose client has gone would go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the block takes longer."""
    task = asyncio.current_task()
    assert task is not None
    late = False

    def end() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except asyncio.CancelledError:
        if not late:
            raise
        getattr(task, "uncancel", int)()  # since Python 3.11 a task counts its cancellations
        raise TimeoutError from None
    finally:
        timer.cancel()
