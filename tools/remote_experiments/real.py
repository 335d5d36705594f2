"""Real workers for experiments: processes of this machine, relays before them, and timed answers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.deploy.deploying import WorkerSizes
from remoe_edge.deploy.packing import Function
from remoe_edge.deploy.worker_process import WorkerProcess, experts_text, worker_command
from remoe_edge.engine.engine import Engine
from remoe_edge.files.prompts import read_prompts
from remoe_edge.native import _core
from remoe_edge.remote.keys import make_keys
from remote_experiments.network.two_hosts import WORKER, inside, two_hosts

Floats = npt.NDArray[np.float64]
_ELSEWHERE = "REMOE_EXPERIMENT_WORKERS"


@dataclass(frozen=True)
class Elsewhere:
    """Hold where workers run if not beside us: a namespace, its address, and a folder of keys."""

    namespace: str
    host: str
    keys: Path

    @classmethod
    def of_environment(cls) -> Elsewhere | None:
        """Read what `on_two_hosts` has said to the process that runs on the engine's host."""
        held = os.environ.get(_ELSEWHERE)
        if held is None:
            return None
        namespace, host, keys = held.split(",", 2)
        return cls(namespace, host, Path(keys))

    @property
    def client_keys(self) -> Path:
        """Give what an engine proves itself with."""
        return self.keys / "client.pem"


def on_two_hosts(arguments: Sequence[str], *, delay_us: int, bits_per_s: float) -> int:
    """Run a program of Python on the engine's host of two; give its exit code. Raises NoNetwork."""
    with (
        tempfile.TemporaryDirectory() as folder,
        two_hosts(Path(folder), delay_us=delay_us, bits_per_s=bits_per_s) as hosts,
    ):
        keys = Path(folder) / "keys"
        make_keys(keys)
        environment = {**os.environ, _ELSEWHERE: f"{hosts.worker},{WORKER},{keys}"}
        command = hosts.on_engine([sys.executable, *arguments])
        return subprocess.run(command, env=environment, check=False).returncode


@dataclass(frozen=True)
class Model:
    """Hold a model's path and counts."""

    path: Path

    @property
    def blocks(self) -> list[int]:
        """Give the model's numbers of its expert layers."""
        return [layer.block for layer in _core.ModelFile.open(str(self.path)).expert_layers]

    @property
    def n_layers(self) -> int:
        """Count layers with experts."""
        return len(self.blocks)

    @property
    def n_experts(self) -> int:
        """Count experts of a layer."""
        return int(_core.ModelFile.open(str(self.path)).expert_layers[0].n_experts)

    def worker(
        self, experts: Sequence[int], threads: int = 1, elsewhere: Elsewhere | None = None
    ) -> WorkerProcess:
        """Start a worker for experts, layer * n_experts + expert; beside us or elsewhere."""
        ids = sorted(experts)
        sizes = WorkerSizes(self.path)
        host = "127.0.0.1" if elsewhere is None else elsewhere.host
        more = () if elsewhere is None else ("--keys", str(elsewhere.keys / "worker.pem"))
        command = worker_command(
            str(self.path), experts_text(ids, self.n_experts, self.blocks),
            sizes.experts_bytes(len(ids)), f"{host}:0", threads, more,
        )  # fmt: skip
        return WorkerProcess(command if elsewhere is None else inside(elsewhere.namespace, command))

    def every_expert(self) -> list[int]:
        """List all experts."""
        return list(range(self.n_layers * self.n_experts))


@dataclass
class Timed:
    """Hold what one answer took, in milliseconds."""

    ttft_ms: float
    token_ms: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def tpot_ms(self) -> float:
        """Give the mean time of a token after the first."""
        return float(np.mean(self.token_ms))


def answer(engine: Engine, prompt: Sequence[int], n_tokens: int) -> Timed:
    """Have a prompt answered, greedily, by exactly so many tokens."""
    made = engine.generate(
        list(prompt), max_tokens=n_tokens, temperature=0, logit_bias=_endless(engine)
    )
    for _ in made:
        pass
    stats = made.stats
    return Timed(stats.ttft_ms, list(stats.token_ms), list(made.token_ids))


def _endless(engine: Engine) -> dict[int, float]:
    n_vocab = int(engine.llama.n_vocab())
    return {token: -100.0 for token in range(n_vocab) if engine.is_end(token)}


def prompts_of(engine: Engine, path: Path, n_prompts: int, n_tokens: int) -> list[list[int]]:
    """Take prompts of so many tokens from a text or a file of prompts."""
    if path.suffix in (".jsonl", ".json"):
        texts = read_prompts(path)
        found = [engine.tokenize(text)[:n_tokens] for text in texts]
    else:
        text = path.read_text(encoding="utf-8")
        text = text * (1 + 12 * n_prompts * n_tokens // len(text))  # again from its beginning
        tokens = engine.tokenize(text[: 40 * n_prompts * n_tokens])
        found = [tokens[at : at + n_tokens] for at in range(0, len(tokens), n_tokens)]
    return [each for each in found if len(each) == n_tokens][:n_prompts]


def interval(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Give the mean, and what holds 95 % of the means of values drawn again."""
    found = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = found[rng.integers(0, len(found), (draws, len(found)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(found.mean()), "low": float(low), "high": float(high), "n": len(found)}


class Relays:
    """Stand between engines and workers and delay what passes, in processes of their own."""

    def __init__(self, delay_ms: float, jitter: float, seed: int = 0) -> None:
        self._words = [str(delay_ms), str(jitter), str(seed)]
        self._running: list[subprocess.Popen[str]] = []

    def before(self, address: str) -> str:
        """Give the address of a relay to an address."""
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("relay.py")), address, *self._words],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._running.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def close(self) -> None:
        """End all relays."""
        for each in self._running:
            each.kill()
            each.wait()
        self._running = []


class LocalFunctions:
    """Hold leases by starting workers on this machine, as replicas do, after a start that is drawn.

    See `remoe_edge.deploy.leases.Holder`. start_s: what a start takes beside the worker's own; sigma: its
    spread in logarithms. A worker lives until its lease is given back.
    """

    def __init__(
        self, model: Model, functions: Sequence[Function], *, start_s: float = 0.0,
        sigma: float = 0.0, relays: Relays | None = None, seed: int = 0,
        elsewhere: Elsewhere | None = None,
    ) -> None:  # fmt: skip
        self._model, self._relays, self._elsewhere = model, relays, elsewhere
        self._functions = {each.name: each for each in functions}
        self._start_s, self._sigma = start_s, sigma
        self._rng = np.random.default_rng(seed)
        self._hear: Callable[[dict[str, Any]], None] = lambda line: None
        self._running: dict[tuple[str, int], WorkerProcess] = {}
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def start(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """See `Holder`."""
        self._hear = hear

    def hold(self, function: str, at: int) -> None:
        """See `Holder`."""
        pause_s = self._start_s * float(np.exp(self._sigma * self._rng.standard_normal()))
        thread = threading.Thread(target=self._start, args=(function, at, pause_s), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start(self, function: str, at: int, pause_s: float) -> None:
        begin = time.monotonic()
        if self._closing.wait(pause_s):
            return
        made = self._functions[function]
        worker = self._model.worker(made.experts, made.threads, self._elsewhere)
        self._running[function, at] = worker
        address = worker.address if self._relays is None else self._relays.before(worker.address)
        self._hear(
            {
                "lease": [function, at],
                "address": address,
                "start_ms": 1000 * (time.monotonic() - begin),
            }
        )

    def release(self, function: str, at: int) -> None:
        """See `Holder`."""
        worker = self._running.pop((function, at), None)
        if worker is not None:
            worker.stop()

    def close(self) -> None:
        """See `Holder`."""
        self._closing.set()
        for thread in self._threads:
            thread.join()
        for worker in self._running.values():
            worker.stop()
        self._running.clear()


@contextlib.contextmanager
def workers(model: Model, parts: Sequence[Sequence[int]]) -> Iterator[list[WorkerProcess]]:
    """Have a worker for each part of the experts."""
    made: list[WorkerProcess] = []
    try:
        for part in parts:
            made.append(model.worker(part))
        yield made
    finally:
        for each in made:
            each.stop()


def until_serving(engine: Engine, n: int, patience_s: float = 600.0) -> None:
    """Wait until so many peers are proven and serve."""
    end = time.monotonic() + patience_s
    while True:
        peers = (engine.stats().remote or {}).get("peers", [])
        if sum(each["state"] == "serving" for each in peers) >= n:
            return
        if time.monotonic() > end:
            raise SystemExit(f"the workers do not serve: {peers}")
        time.sleep(0.05)
