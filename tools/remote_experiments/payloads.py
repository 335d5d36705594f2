#!/usr/bin/env python3
"""Payloads through 6 MB and beyond, at a real worker: cut up, or refused, and never a crash.

    python tools/remote_experiments/payloads.py -o docs/results/remote-payloads.json

First prompts of more and more tokens: how many bytes of rows a layer's step holds, what the engine sent
of them, and whether the answer is the one without a worker. Then frames of a stranger that are as long as
they say, or only say so: the worker has to live, refuse them, and hold no more memory than before. What a
price table's payload limit makes of the same rows is told beside.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from remoe_edge.deploy.deploying import WorkerSizes
from remoe_edge.deploy.worker_process import WorkerProcess
from remoe_edge.engine.engine import Engine
from remoe_edge.errors import RemoeError
from remoe_edge.files.models import shipped_model
from remoe_edge.native import _core
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.times import rounds
from remote_experiments.real import Model, prompts_of, until_serving
from remote_experiments.setting import keep

MB = 1_000_000
MOST_SENT = 256 * MB
# As csrc/wire/frame.h has it. Of the versions, one is refused for its size, the others for themselves.
HEADER = struct.Struct("<IHHQIIIIIIQQ")
MAGIC, VERSIONS, ASK = 0x46584D52, (1, 2), 5


def prompts(
    model: Model, worker: WorkerProcess, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Evaluate prompts of growing length with a worker and alone; compare bits."""
    file = _core.ModelFile.open(str(model.path))
    streamed = _core.StreamedModel.open(str(model.path))
    embed = file.unsigned(f"{file.architecture}.embedding_length") or 1
    cache = str(WorkerSizes(model.path).main_cache_bytes(0))
    longest = max(options.lengths)
    settings: dict[str, Any] = {
        "cache": cache, "n_ctx": longest + 64, "threads": 1, "prefetch": "off", "n_batch": longest,
        "n_ubatch": longest,
    }  # fmt: skip
    limit = load_prices("paper").function.payload_bytes
    rows = []
    with (
        Engine(model.path, **settings) as alone,
        Engine(model.path, peers=[worker.address], hedge=False, **settings) as helped,
    ):
        until_serving(helped, 1)
        for length in options.lengths:
            prompt = prompts_of(alone, options.text, 1, length)[0]
            before = helped.stats().remote or {}
            bits = alone.evaluate(prompt).view(np.uint32)
            same = bool((helped.evaluate(prompt).view(np.uint32) == bits).all())
            after = helped.stats().remote or {}
            layer_bytes = length * streamed.n_experts_used * embed * 4
            rows.append(
                {
                    "tokens": length, "layer_bytes": layer_bytes,
                    "sent_bytes": after["remote_sent_bytes"] - before["remote_sent_bytes"],
                    "asks": after["remote_asked"] - before["remote_asked"],
                    "calls_by_price_table": rounds(layer_bytes, 1, limit), "same_bits": same,
                }
            )  # fmt: skip
            told = rows[-1]
            print(
                f"{length} tokens, {layer_bytes / MB:.2f} MB a layer: {told['asks']} asks, "
                f"{told['sent_bytes'] / MB:.2f} MB sent, same bits: {same}",
                flush=True,
            )
    return rows


def strangers(worker: WorkerProcess, sizes: list[int]) -> list[dict[str, Any]]:
    """Send a worker frames of these payloads, as long as they say and not; see whether it lives."""
    rows = []
    for size in sizes:
        # What nobody could send is only claimed.
        for honest in (True, False) if size <= MOST_SENT else (False,):
            before = memory(worker.pid)
            sent = [send(worker.address, version, size, honest) for version in VERSIONS]
            worker.check()
            rows.append(
                {
                    "payload_bytes": size,
                    "as_long_as_it_says": honest,
                    "taken_bytes": sent,
                    "refused": True,  # else `send` would not have come back
                    "worker_lives": True,
                    "rss_grew_bytes": memory(worker.pid) - before,
                }
            )
    return rows


def send(address: str, version: int, size: int, honest: bool) -> int:
    """Send one frame and wait until the worker hangs up; give the bytes that it let us send."""
    host, _, port = address.rpartition(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=120) as stranger:
        try:
            stranger.sendall(HEADER.pack(MAGIC, version, ASK, 1, 0, 0, 64, 4096, 0, 0, size, 0))
            for _ in range(-(-size // MB) if honest else 0):
                stranger.sendall(bytes(MB))
                sent += MB
            while stranger.recv(1 << 16):
                pass
        except ConnectionError:
            pass  # it hung up while we were sending
    return sent


def memory(pid: int) -> int:
    """Give a process's resident bytes."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def main(arguments: list[str] | None = None) -> int:
    """Run both."""
    parser = argparse.ArgumentParser(prog="payloads.py", description="Send more and more.")
    parser.add_argument("model", type=Path, nargs="?", default=shipped_model())
    parser.add_argument("--text", type=Path, default=Path(__file__).with_name("prompts.txt"))
    parser.add_argument(
        "--lengths", type=lambda text: [int(each) for each in text.split(",")],
        default=[1, 8, 9, 64, 256, 1100],
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=lambda text: [int(float(each) * MB) for each in text.split(",")],
        default=[MB, 5_900_000, 6 * MB, 6_100_000, 16 * MB, 17 * MB, 64 * MB, 1 << 40],
        help="payloads of strangers, in MB",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    model = Model(options.model)
    try:
        worker = model.worker(model.every_expert())
        try:
            answered = prompts(model, worker, options)
            refused = strangers(worker, options.sizes)
            after = prompts(model, worker, options)[:1]
        finally:
            worker.stop()
    except RemoeError as error:
        raise SystemExit(str(error)) from error
    good = all(row["same_bits"] for row in [*answered, *after]) and all(
        r["refused"] for r in refused
    )
    keep({"model": options.model.name, "prompts": answered, "strangers": refused,
          "answers_afterwards": after, "good": good}, options.out)  # fmt: skip
    print("never a crash" if good else "NOT ALL WENT WELL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
