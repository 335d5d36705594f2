"""Wait for what surely comes, however loaded the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 120


def wait_until(reached: Callable[[], object], what: str = "it") -> None:
    """Return once `reached` is true; fail after two minutes."""
    end = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)
