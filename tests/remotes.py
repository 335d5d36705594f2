"""What tests of experts on other machines share: engines, workers, and a line that does them harm."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import stock
from remoe_edge import Engine
from remoe_edge.native import _core
from remoe_edge.remote.worker import Worker
from remote_experiments.many_engines import ANSWER, HEADER_BYTES, frames, summed

N_GREEDY = 3


def prompt(length: int) -> list[int]:
    return [(37 * i + 11) % 200 + 5 for i in range(length)]


def floor_of(path: Path, *, checking: bool = True) -> str:
    model = _core.StreamedModel.open(str(path))
    more = _core.peer_check_bytes(model) if checking else 0
    return str(model.budget_for(max(1, model.n_experts_used)) + more)


@contextlib.contextmanager
def engine(path: Path, *addresses: str, **settings: Any) -> Iterator[Engine]:
    given = {"cache": floor_of(path), "n_ctx": 1024, "threads": 2, "prefetch": "off"}
    with Engine(path, peers=addresses, **{**given, **settings}) as made:
        yield made


def worker(path: Path, experts: str = "all", **settings: Any) -> Worker:
    given = {"memory": "64MiB", "listen": "127.0.0.1:0", "threads": 1}
    return Worker(path, experts=experts, **{**given, **settings})


@contextlib.contextmanager
def process(path: Path, experts: str = "all", port: int = 0) -> Iterator[tuple[Any, str]]:
    command = [
        sys.executable, "-m", "remoe_edge.cli", "worker", str(path), "--experts", experts,
        "--memory", "64MiB", "--listen", f"127.0.0.1:{port}", "-t", "1",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        line = running.stderr.readline()
        found = re.search(r"on (127\.0\.0\.1:\d+)", line)
        try:
            assert found is not None, line
            yield running, found[1]
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGCONT)
                running.kill()


def check(made: Engine, reference: stock.Result, length: int) -> None:
    rows = [made.evaluate(prompt(length))]
    rows += [made.evaluate([token], reset=False) for token in reference.tokens]
    same = np.stack(rows).view(np.uint32) == reference.logits.view(np.uint32)
    assert same.all(), f"{(~same).sum()} logits differ"


def expected(path: Path, length: int, *, repack: bool = False, n: int = N_GREEDY) -> stock.Result:
    return stock.run(path, prompt(length), n, n_threads=2, use_extra_bufts=repack)


def remote(made: Engine) -> dict[str, Any]:
    return dict(made.stats()["remote"])


CLOSE = b""  # in place of a frame: the connection ends
Spoil = Callable[[int, bytes], Iterable[bytes]]


class Line:
    """Stand between engines and a worker, and change what the worker says.

    spoil: gives what goes on in place of a frame of the worker's (kind, bytes). While `down`, nothing
    goes either way, and connections stay as they are.
    """

    def __init__(self, address: str, spoil: Spoil = lambda kind, frame: [frame]) -> None:
        host, _, port = address.rpartition(":")
        self._worker = (host, int(port))
        self.spoil = spoil
        self.raw: Callable[[bytes], object] | None = (
            None  # gets all bytes, which are carried as they are
        )
        self.down = threading.Event()
        self._ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                engine, _ = self._server.accept()
                try:
                    worker = socket.create_connection(self._worker)
                except OSError:
                    engine.close()
                    continue
                for pair in ((engine, worker, False), (worker, engine, True)):
                    thread = threading.Thread(target=self._carry, args=pair, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, spoils: bool) -> None:
        source.settimeout(0.05)
        data = bytearray()
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                try:
                    piece = source.recv(1 << 16)
                except TimeoutError:
                    continue
                if not piece:
                    break
                while self.down.is_set() and not self._ended.is_set():
                    time.sleep(0.01)
                if self.raw is not None:
                    self.raw(piece)
                    target.sendall(piece)
                    continue
                data += piece
                said = [
                    frame
                    for kind, whole in frames(data)
                    for frame in self._said(spoils, kind, whole)
                ]
                for frame in said:
                    if frame == CLOSE:
                        raise OSError("this line is cut")
                    target.sendall(frame)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _said(self, spoils: bool, kind: int, frame: bytes) -> Iterable[bytes]:
        return self.spoil(kind, frame) if spoils else [frame]

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.close()
        for thread in self._threads:
            thread.join()


def flipped(frame: bytes, *, seed: int) -> bytes:
    """Return a frame with one bit changed."""
    changed = bytearray(frame)
    at = seed * 7919 % (len(frame) * 8)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def as_kind(frame: bytes, kind: int) -> bytes:
    """Return a frame without payload of another kind, for the same request."""
    changed = bytearray(frame[:HEADER_BYTES])
    changed[6:8] = kind.to_bytes(2, "little")
    changed[40:48] = bytes(8)
    return summed(changed)


def answers_only(spoil: Spoil) -> Spoil:
    """Leave all but answers as they are."""
    return lambda kind, frame: spoil(kind, frame) if kind == ANSWER else [frame]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
