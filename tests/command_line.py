"""Run `remoe-edge` in this process, or in one of its own where signals and pipes matter."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from remoe_edge.cli import cli

SECONDS = 600  # how long a test waits before it calls something lost


@dataclass(frozen=True)
class Outcome:
    """Hold what a command printed, and its exit status."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """Return the one line of an error, and insist that it is one."""
        assert self.code == 1, self
        assert self.out == "", self
        assert self.err.startswith("Error: "), self
        assert self.err.count("\n") == 1, self
        return self.err


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> Outcome:
    """Run a command line in this process."""
    capsys.readouterr()
    assert isinstance(sys.stderr, io.TextIOWrapper)
    sys.stderr.reconfigure(errors="backslashreplace")  # as the interpreter's own
    with pytest.raises(SystemExit) as ended:
        cli([str(arg) for arg in args], prog_name="remoe-edge")
    out, err = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), out, err)


class Running:
    """A command in a process of its own; what it writes to stderr can be waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.out = bytearray()
        self.err = bytearray()
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((process.stdout, self.out), (process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _collect(self, stream: object, into: bytearray) -> None:
        while piece := os.read(stream.fileno(), 65536):  # type: ignore[attr-defined]
            with self._changed:
                into += piece
                self._changed.notify_all()

    def type(self, text: str) -> None:
        """Write to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until stderr has said `text` that many times."""
        wanted = text.encode()
        self._wait(lambda: self.err.count(wanted) >= times, f"{text!r} x {times}")

    def wait_for_output(self, n_bytes: int = 1) -> None:
        """Wait until stdout has that many bytes in all."""
        self._wait(lambda: len(self.out) >= n_bytes, f"{n_bytes} bytes on stdout")

    def _wait(self, reached: object, what: str) -> None:
        end = time.monotonic() + SECONDS
        with self._changed:
            while not reached():  # type: ignore[operator]
                left = end - time.monotonic()
                assert left > 0, f"no {what}; stderr: {self.err.decode()}"
                assert self._changed.wait(left) or left > 0

    def end(self) -> Outcome:
        """Close its stdin, and wait until it ends."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        return Outcome(code, self.out.decode(), self.err.decode())


@contextlib.contextmanager
def start(*args: str | Path, state: Path) -> Iterator[Running]:
    """Start a command line; `state` is the folder of its history."""
    process = subprocess.Popen(
        [sys.executable, "-m", "remoe_edge.cli", *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_STATE_HOME": str(state)},
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()
