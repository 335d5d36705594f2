"""Measure what clients gain together where everything is resident, beside llama.cpp's own server.

    python tools/many_clients/gain.py [MODEL] --llama-server llama-server --clients 1,2,4,8 -o gain.json

Both servers get the same prompts from the same clients, one server after the other in each round. A gain
is the tokens a second of all clients together against those of one; a row is the median of the rounds.
Without --llama-server only ours is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from many_clients.record import held, tell
from many_clients.server import READY_S, serving, stream
from remoe_edge.files.models import shipped_model

_TEXT = Path(__file__).resolve().parents[2] / "models" / "heldout" / "prose.txt"
_SIDES = ("ours", "llama.cpp")


@contextlib.contextmanager
def stock_server(program: Path, model: Path, options: list[str]) -> Iterator[int]:
    """Run llama-server until the end of the block; give its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [str(program), "-m", str(model), "--port", str(port), "-ngl", "0", *options]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        end_s = time.monotonic() + READY_S
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"{program} did not start: status {process.poll()}")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False


@contextlib.contextmanager
def _our_server(model: Path, options: list[str]) -> Iterator[int]:
    with serving(model, options) as server:
        yield server.port


def tokens_per_s(port: int, n_clients: int, n_requests: int, n_tokens: int) -> float:
    """Have each client ask so often; give the tokens that all got, a second."""
    text = _TEXT.read_text(encoding="utf-8")
    made: list[int] = []

    def client(which: int) -> None:
        for n in range(n_requests):
            at = 400 * (which * n_requests + n) % max(1, len(text) - 400)
            body = {
                "prompt": text[at : at + 300], "temperature": 0, "max_tokens": n_tokens,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
            told = [event.get("usage") for event in stream(port, "/v1/completions", body)]
            made.extend([each["completion_tokens"] for each in told if each][-1:])

    threads = [threading.Thread(target=client, args=[i]) for i in range(n_clients)]
    begun_s = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    took_s = time.perf_counter() - begun_s
    if len(made) != n_clients * n_requests:
        raise RuntimeError(f"{n_clients * n_requests - len(made)} requests were not answered")
    return sum(made) / took_s


def rows(rates: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """Give each number of clients, and what it gains over one."""
    median = {key: statistics.median(each) for key, each in rates.items()}
    most = max(n for _, n in rates)
    made = []
    for n in sorted({n for _, n in rates}):
        line: dict[str, Any] = {"clients": n}
        gains = {}
        for side in _SIDES:
            rate, one = median.get((side, n)), median.get((side, 1))
            gains[side] = round(rate / one, 3) if rate and one else None
            line[f"{side} tok/s"] = None if rate is None else round(rate, 2)
            line[f"{side} gain"] = gains[side]
        stock = gains["llama.cpp"]
        line["bound"] = f">= {stock}" if n == most and n > 1 and stock is not None else ""
        line["held"] = held(gains["ours"], line["bound"])
        made.append(line)
    return made


def main() -> int:
    """Measure, and say what came of it; status 1 where the bound was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4, help="of each client, in a round")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    counts = sorted({1, *map(int, asked.clients.split(","))})
    model, n_most, threads = asked.model or shipped_model(), max(counts), str(asked.threads)
    ours = [
        "--cache", "100%", "--ctx", str(asked.ctx), "--parallel", str(n_most), "-t", threads,
        "--routers", "off", "--queue", str(n_most),
    ]  # fmt: skip
    stock = ["-c", str(asked.ctx * n_most), "-np", str(n_most), "-t", threads, "-tb", threads]
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(asked.rounds):
        servers: dict[str, AbstractContextManager[int]] = {"ours": _our_server(model, ours)}
        if asked.llama_server is not None:
            servers["llama.cpp"] = stock_server(asked.llama_server, model, stock)
        for side, server in servers.items():
            with server as port:
                tokens_per_s(port, n_most, 1, 16)  # warm: the schedule has to learn, too
                for n in counts:
                    rate = tokens_per_s(port, n, asked.requests, asked.tokens)
                    rates.setdefault((side, n), []).append(rate)
    made = [{"side": side, "clients": n, "tokens_per_s": each} for (side, n), each in rates.items()]
    return 0 if tell(asked, rows(rates), asked.output, rates=made) else 1


if __name__ == "__main__":
    sys.exit(main())
