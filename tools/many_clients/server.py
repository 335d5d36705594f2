"""A server in a process of its own, and a plain client that hears an answer token by token."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_S = 600.0
_BUSY = (429, 503)


@dataclass(frozen=True)
class Server:
    """Hold where a server listens, and its process."""

    port: int
    process: subprocess.Popen[bytes]

    def rss_bytes(self) -> int:
        """Read the memory that the process holds now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has gone")

    def get(self, path: str) -> Any:
        """Get a path's JSON."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())


@contextlib.contextmanager
def serving(model: Path | None, options: Sequence[str]) -> Iterator[Server]:
    """Run `remoe-edge serve` until the end of the block; what it says goes to stderr."""
    command = [sys.executable, "-m", "remoe_edge.cli", "serve"]
    command += [] if model is None else [str(model)]
    process = subprocess.Popen([*command, "--port", "0", *options], stderr=subprocess.PIPE)
    try:
        yield Server(_port(process), process)
    finally:
        process.terminate()
        process.wait()


def _port(process: subprocess.Popen[bytes]) -> int:
    """Wait until the model is ready; read stderr to its end in a thread, so that it never fills."""
    found: list[int] = []
    ready = threading.Event()
    assert process.stderr is not None
    stderr = process.stderr

    def read() -> None:
        for line in stderr:
            sys.stderr.buffer.write(line)
            listens = re.search(rb"listening at \S+:(\d+)/", line)
            if listens:
                found.append(int(listens[1]))
            if b"ready: " in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(READY_S) or not found or process.poll() is not None:
        raise RuntimeError("the server did not start")
    return found[0]


class Refused(Exception):
    """A status that is no answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body.decode(errors='replace')[:200]}")
        self.status = status


def stream(port: int, path: str, body: dict[str, Any], timeout_s: float = 600) -> Iterator[Any]:
    """Ask for a streamed answer; give the events as they come. Leaving the loop hangs up.

    Asks again while the server is busy. Raises Refused for any other status.
    """
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        with contextlib.closing(connection):
            data = json.dumps({**body, "stream": True}).encode()
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status in _BUSY:
                answer.read()
                time.sleep(0.2)
                continue
            if answer.status != 200:
                raise Refused(answer.status, answer.read())
            for line in answer:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise Refused(500, line[6:])
                    yield event
            return
