"""A worker under a supervisor: it reports on stdout, and ends with whoever started it.

    {"serving": "127.0.0.1:41000", "experts": 96, "budget_bytes": 12345}    once
    {"counts": {"clients": 1, "answers": 20, ...}}                          every second

A line of counts also says that a canary was right: an expert summed and a row computed again. Where one
is wrong, the worker ends with an error instead.
"""

from __future__ import annotations

import json
import threading
import time
from typing import IO, Any

from remoe_edge.remote.worker import Worker

EVERY_S = 1.0


class Report:
    """Write a worker's lines; call it a few times a second, as `Worker.wait` does with `look`."""

    def __init__(self, worker: Worker, out: IO[str], *, every_s: float = EVERY_S) -> None:
        self._worker, self._out, self._every_s = worker, out, every_s
        self._due = time.monotonic()
        self._write(
            serving=worker.address, experts=worker.n_experts, budget_bytes=worker.budget_bytes
        )

    def __call__(self) -> None:
        """Check a canary and report, when it is time. Raises ModelError where the canary is wrong."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every_s
        self._worker.check()
        self._write(counts=self._worker.counts())

    def _write(self, **line: Any) -> None:
        try:
            print(json.dumps(line), file=self._out, flush=True)
        except (BrokenPipeError, ValueError):
            self._worker.stop()  # nobody listens any more


def stop_with_input(worker: Worker, source: IO[bytes]) -> None:
    """Stop a worker once its input ends, which is when its supervisor does, however that ends."""

    def watch() -> None:
        while source.read(4096):
            pass
        worker.stop()

    threading.Thread(target=watch, name="supervisor", daemon=True).start()
