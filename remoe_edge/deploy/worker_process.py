"""The supervisor's side of a worker: start it, hear its lines, know whether it is well, stop it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from remoe_edge.errors import RemoeError

SILENT_S = 10.0  # without a line, after which a worker counts as stuck
_STOP_S = 8.0  # for its last answers


def worker_command(
    model: str, experts: str, memory_bytes: int, listen: str, threads: int,
    more: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Write the command that a replica runs: the same worker as without Ray."""
    return [
        sys.executable, "-m", "remoe_edge.cli", "worker", model, "--experts", experts,
        "--memory", str(memory_bytes), "--listen", listen, "-t", str(threads), "--supervised", *more,
    ]  # fmt: skip


def experts_text(ids: Sequence[int], n_experts: int, blocks: Sequence[int]) -> str:
    """Write experts as `--experts` takes them; blocks: the model's number of each expert layer."""
    parts, run = [], [ids[0], ids[0]]
    for each in [*ids[1:], -1]:
        if each == run[1] + 1 and each % n_experts:
            run[1] = each
            continue
        layer, first = divmod(run[0], n_experts)
        last = run[1] % n_experts
        parts.append(f"{blocks[layer]}:{first}" + (f"-{last}" if last != first else ""))
        run = [each, each]
    return ",".join(parts)


class WorkerProcess:
    """Hold a running worker; `address` is where engines connect.

    Raises RemoeError where it does not come to serve within `patience_s`; the message is its own.
    """

    def __init__(self, command: Sequence[str], *, patience_s: float = 300.0) -> None:
        started = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._said: list[str] = []
        self._counts: dict[str, int] = {}
        self._serving: dict[str, Any] = {}
        self._heard = time.monotonic()
        self._ready = threading.Event()
        for target in (self._hear, self._hear_errors):
            threading.Thread(target=target, name="worker-lines", daemon=True).start()
        if not self._ready.wait(patience_s) or not self._serving:
            self.stop()
            raise RemoeError(f"the worker did not start: {self._last_words()}")
        self.start_ms = 1000 * (time.monotonic() - started)

    @property
    def pid(self) -> int:
        """Give the worker's process id."""
        return self._process.pid

    @property
    def address(self) -> str:
        """Give HOST:PORT."""
        return str(self._serving["serving"])

    @property
    def budget_bytes(self) -> int:
        """Give what its experts take."""
        return int(self._serving["budget_bytes"])

    def counts(self) -> dict[str, int]:
        """Give its last counts."""
        return dict(self._counts)

    def check(self, silent_s: float = SILENT_S) -> None:
        """Raise RemoeError unless it runs and its last canary was right a short while ago."""
        if self._process.poll() is not None:
            raise RemoeError(f"the worker has ended: {self._last_words()}")
        silent = time.monotonic() - self._heard
        if silent > silent_s:
            raise RemoeError(f"the worker has not been heard of for {silent:.0f} s")

    def stop(self) -> None:
        """End it politely, and for certain."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            self._heard = time.monotonic()
            if "serving" in line:
                self._serving = line
                self._ready.set()
            elif "counts" in line:
                self._counts = line["counts"]
        self._ready.set()

    def _hear_errors(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            self._said = [*self._said[-4:], text.strip()]

    def _last_words(self) -> str:
        time.sleep(0.1)  # its last line may still be on its way
        return self._said[-1].removeprefix("Error: ") if self._said else "it said nothing"
