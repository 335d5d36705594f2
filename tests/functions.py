"""Deployments that tests share: a placement of a tiny model, and leases without Ray."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from placements import table
from remoe_edge.deploy.deploying import WorkerSizes, function_jobs
from remoe_edge.deploy.packing import pack
from remoe_edge.deploy.record import Deployment, Ray
from remoe_edge.deploy.worker_process import WorkerProcess, worker_command
from remoe_edge.errors import RemoeError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.native import _core
from remoe_edge.placement.latency_curve import by_processors, curve
from remoe_edge.placement.planner import Options, Placement, place
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload
from remoe_edge.remote.worker import Worker


def placement_of(model: Path, *, n_local: int, n_answer: int = 16, **options: Any) -> Placement:
    """Place a model's experts, those with low numbers used most."""
    file = _core.ModelFile.open(str(model))
    streamed = _core.StreamedModel.open(str(model))
    n_layers, n_experts = streamed.n_layers, streamed.n_experts
    request = Request(
        Shape(
            n_layers, n_experts, streamed.n_experts_used, streamed.budget_for(1), file.dense_bytes, 1024
        ),
        Speed(1.0, 0.1, 1.0, 0.1, 0.1), Link(0.1, 1e9), Slo(1e6, 1e6), Workload(16, n_answer),
    )  # fmt: skip
    weights = np.arange(1, n_experts + 1, dtype=float) ** -1.5
    shares = np.tile(weights / weights.sum(), (n_layers, 1))
    prices = table("lifetime")
    made = curve(by_processors("made up", prices.function, 1.0), stepwise=True)
    return place(request, prices, made, shares, Options(n_local=n_local, **options))


def deployment_of(
    model: Path, *, n_local: int, n_functions: int, ray: Ray | None = None, **options: Any
) -> Deployment:
    """Make a deployment of a model that nobody has deployed."""
    placement = placement_of(model, n_local=n_local, **options)
    functions = pack(placement, n_functions, WorkerSizes(model).process_bytes)
    return Deployment(
        "tiny", str(model), fingerprint(_core.ModelFile.open(str(model))),
        ray or Ray("127.0.0.1:1", pid=1), tuple(functions), placement, 1,
    )  # fmt: skip


class Workers:
    """Hold leases by starting a worker for each: in this process, or as a replica does, in its own."""

    def __init__(self, deployment: Deployment, *, processes: bool = False) -> None:
        self._processes = processes
        jobs = function_jobs(deployment, WorkerSizes(Path(deployment.model)), conversations=1)
        self._specs = {
            each.name: job["spec"] for each, job in zip(deployment.functions, jobs, strict=True)
        }
        self.asked: list[tuple[str, str, int]] = []  # what was asked of this, in order
        self.running: dict[tuple[str, int], WorkerProcess | Worker] = {}
        self.gate = threading.Event()  # nothing starts before it is set
        self.gate.set()
        self._hear: Callable[[dict[str, Any]], None] = lambda line: None
        self._threads: list[threading.Thread] = []

    def start(self, hear: Callable[[dict[str, Any]], None]) -> None:
        self._hear = hear

    def hold(self, function: str, at: int) -> None:
        self.asked.append(("hold", function, at))
        thread = threading.Thread(target=self._start, args=(function, at), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start(self, function: str, at: int) -> None:
        self.gate.wait()
        try:
            self._serve(function, at)
        except RemoeError as error:  # as a replica that does not start
            self._hear({"lease": [function, at], "lost": str(error)})
            raise

    def _serve(self, function: str, at: int) -> None:
        spec = dict(self._specs[function])
        command = worker_command(
            spec["model"],
            spec["experts"],
            spec["memory_bytes"],
            f"{spec['host']}:0",
            spec["threads"],
        )
        worker = self.running[function, at] = WorkerProcess(command)
        self._hear(
            {"lease": [function, at], "address": worker.address, "start_ms": worker.start_ms}
        )

    def lose(self, function: str, at: int, why: str = "killed") -> None:
        """Tell that a lease has ended, as Ray does when a replica dies."""
        self._hear({"lease": [function, at], "lost": why})

    def release(self, function: str, at: int) -> None:
        self.asked.append(("release", function, at))
        worker = self.running.pop((function, at), None)
        if worker is not None:
            worker.stop()

    def close(self) -> None:
        self.gate.set()
        for thread in self._threads:
            thread.join()
        for worker in self.running.values():
            with contextlib.suppress(Exception):
                worker.stop()
        self.running.clear()
