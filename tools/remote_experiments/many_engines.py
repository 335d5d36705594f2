"""Put many engines on one worker, and see whether it is fair, and whether anything of it grows.

One real engine is listened to: what it says to be let in, how it says its layers are computed, and
what it asks. Many clients then say the same, each asking as soon as it is answered, and compare every
answer with the one that the engine got, bit by bit. Written down: answers of each client, the worker's
memory and descriptors once a second.

    python tools/remote_experiments/many_engines.py MODEL --clients 100 --seconds 300 -o many.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remoe_edge import Engine
from remoe_edge.cli.results import write_json
from remoe_edge.native import _core

HEADER_BYTES, SUM_AT = 56, 48
HELLO, WELCOME, RECIPE, ASK, ANSWER, BUSY = 1, 2, 4, 5, 6, 7
_PATIENCE_US = 4_000_000_000
_TIME_AT, _REQUEST_AT = 36, 8


def frames(data: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole frames off the front: (kind, bytes)."""
    while len(data) >= HEADER_BYTES:
        (kind,) = struct.unpack_from("<H", data, 6)
        (payload,) = struct.unpack_from("<Q", data, 40)
        if len(data) < HEADER_BYTES + payload:
            return
        frame = bytes(data[: HEADER_BYTES + payload])
        del data[: HEADER_BYTES + payload]
        yield kind, frame


def patient(frame: bytes) -> bytes:
    """Give an ask that may take as long as it takes."""
    changed = bytearray(frame)
    struct.pack_into("<I", changed, _TIME_AT, _PATIENCE_US)
    return summed(changed)


def summed(frame: bytearray) -> bytes:
    """Give a frame with the sum that fits it."""
    covered = bytes(frame[:SUM_AT]) + bytes(frame[HEADER_BYTES:])
    struct.pack_into("<Q", frame, SUM_AT, _core.checksum64(np.frombuffer(covered, np.uint8)))
    return bytes(frame)


@dataclass
class Heard:
    """Hold what one engine said, and was answered."""

    greeting: list[bytes] = field(default_factory=list)
    asks: dict[bytes, bytes] = field(default_factory=dict)  # by request, then paired with answers
    answers: dict[bytes, bytes] = field(default_factory=dict)

    def take(self, kind: int, frame: bytes) -> None:
        """Take a frame, of whichever side."""
        request = frame[_REQUEST_AT : _REQUEST_AT + 8]
        if kind in (HELLO, RECIPE):
            self.greeting.append(frame)
        elif kind == ASK:
            self.asks[request] = patient(frame)
        elif kind == ANSWER:
            self.answers[request] = frame[HEADER_BYTES:]

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """List asks with their answers."""
        return [(ask, self.answers[at]) for at, ask in self.asks.items() if at in self.answers]


def listen(model: Path, address: str, n_tokens: int) -> Heard:
    """Run an engine through a relay that keeps what goes by."""
    heard = Heard()
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def relay() -> None:
            with contextlib.suppress(OSError):
                engine, _ = server.accept()
                with engine, socket.create_connection((host, int(port))) as worker:
                    ways = [
                        threading.Thread(target=_carry, args=(*pair, heard))
                        for pair in ((engine, worker), (worker, engine))
                    ]
                    for way in ways:
                        way.start()
                    for way in ways:
                        way.join()

        thread = threading.Thread(target=relay, daemon=True)
        thread.start()
        native = _core.StreamedModel.open(str(model))
        floor = native.budget_for(max(1, native.n_experts_used)) + _core.peer_check_bytes(native)
        with Engine(
            model, peers=f"127.0.0.1:{server.getsockname()[1]}", cache=str(floor), threads=1,
            n_ctx=512, prefetch="off",
        ) as engine:  # fmt: skip
            engine.evaluate([5, 6, 7])
            for token in range(n_tokens):
                engine.evaluate([token + 10], reset=False)
    thread.join(timeout=60)
    return heard


def _carry(source: socket.socket, target: socket.socket, heard: Heard) -> None:
    data = bytearray()
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
            data += piece
            for kind, frame in frames(data):
                heard.take(kind, frame)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass
class Client:
    """Count what one client got."""

    answers: int = 0
    busy: int = 0
    wrong: int = 0


async def ask(
    client: Client, address: tuple[str, int], heard: Heard, first: int, until: float
) -> None:
    """Ask one thing after the other until it is time."""
    pairs = heard.pairs()
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(heard.greeting[0])
        await _frame(reader, WELCOME)
        for recipe in heard.greeting[1:]:
            writer.write(recipe)
        at = first
        while time.monotonic() < until:
            request, expected = pairs[at % len(pairs)]
            at += 1
            writer.write(request)
            kind, answer = await _frame(reader, ANSWER, BUSY)
            if kind == BUSY:
                client.busy += 1
                continue
            client.answers += 1
            client.wrong += answer[HEADER_BYTES:] != expected
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _frame(reader: asyncio.StreamReader, *wanted: int) -> tuple[int, bytes]:
    header = await reader.readexactly(HEADER_BYTES)
    (kind,) = struct.unpack_from("<H", header, 6)
    (payload,) = struct.unpack_from("<Q", header, 40)
    body = await reader.readexactly(payload)
    if kind not in wanted:
        raise ValueError(f"a frame of kind {kind}: {body[:200]!r}")
    return kind, header + body


@dataclass
class Watched:
    """Hold what the worker's process used, once a second."""

    rss_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        """Look once."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        self.rss_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))


async def crowd(
    pid: int, address: tuple[str, int], heard: Heard, n_clients: int, seconds: float
) -> tuple[list[Client], Watched]:
    """Run all clients together, and watch."""
    clients = [Client() for _ in range(n_clients)]
    watched = Watched()
    until = time.monotonic() + seconds
    asking = [
        asyncio.create_task(ask(client, address, heard, 7 * i, until))
        for i, client in enumerate(clients)
    ]
    every = min(1.0, seconds / 10)
    while time.monotonic() < until:
        await asyncio.sleep(every)
        watched.look(pid)
    await asyncio.gather(*asking)
    return clients, watched


@contextlib.contextmanager
def worker_process(model: Path, memory: str) -> Iterator[tuple[int, str]]:
    """Run a worker with all experts; give its process and address."""
    command = [
        sys.executable, "-m", "remoe_edge.cli", "worker", str(model), "--experts", "all",
        "--memory", memory, "--listen", "127.0.0.1:0", "-t", "1",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        line = running.stderr.readline()
        found = re.search(r"on (\S+:\d+)", line)
        try:
            if found is None:
                raise SystemExit(f"no worker: {line}{running.stderr.read()}")
            yield running.pid, found[1]
        finally:
            running.terminate()
            running.wait()


def measure(model: Path, *, n_clients: int, seconds: float, memory: str = "4GiB") -> dict[str, Any]:
    """Do all of it; the record says what is fair, what grew, and what was wrong."""
    with worker_process(model, memory) as (pid, address):
        heard = listen(model, address, 4)
        if not heard.pairs():
            raise SystemExit("the engine asked for nothing")
        host, _, port = address.rpartition(":")
        before = Watched()
        before.look(pid)
        clients, watched = asyncio.run(crowd(pid, (host, int(port)), heard, n_clients, seconds))
        after = Watched()
        for _ in range(600):  # the worker sees that they have left within a moment
            after.look(pid)
            if after.descriptors[-1] <= before.descriptors[-1]:
                break
            time.sleep(0.1)
    answers = [client.answers for client in clients]
    mean = sum(answers) / len(answers)
    half = len(watched.rss_bytes) // 2
    return {
        "clients": n_clients,
        "seconds": seconds,
        "answers": sum(answers),
        "busy": sum(client.busy for client in clients),
        "wrong": sum(client.wrong for client in clients),
        "least_share": round(min(answers) / mean, 4) if mean else 0,
        "most_share": round(max(answers) / mean, 4) if mean else 0,
        "rss_mib_half_way": round(watched.rss_bytes[half] / 2**20, 2),
        "rss_mib_at_the_end": round(watched.rss_bytes[-1] / 2**20, 2),
        "descriptors_before": before.descriptors[-1],
        "descriptors_after": after.descriptors[-1],
        "rss_bytes": watched.rss_bytes,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--memory", default="4GiB", help="of the worker")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args(arguments)
    record = measure(
        asked.model, n_clients=asked.clients, seconds=asked.seconds, memory=asked.memory
    )
    if asked.output is not None:
        write_json(record, asked.output)
    print(json.dumps({name: value for name, value in record.items() if name != "rss_bytes"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
