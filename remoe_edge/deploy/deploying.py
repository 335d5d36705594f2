"""From a placement to deployed functions: pack it, deploy it, write down where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from remoe_edge.deploy import local_ray, ray_process, record
from remoe_edge.deploy.packing import pack
from remoe_edge.deploy.record import Deployment, Ray
from remoe_edge.deploy.replica import NODE
from remoe_edge.deploy.worker_process import experts_text
from remoe_edge.errors import InputError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.native import _core
from remoe_edge.placement.planner import FUNCTION_OVERHEAD_BYTES, Placement
from remoe_edge.placement.price import PriceTable
from remoe_edge.units import mib

HERE = "127.0.0.1"


class WorkerSizes:
    """Say what a worker of so many experts of a model needs."""

    def __init__(self, model: Path) -> None:
        self._model = _core.StreamedModel.open(str(model))

    def experts_bytes(self, n_experts: int) -> int:
        """Give what its `--memory` has to be."""
        return _core.worker_bytes(self._model, n_experts)

    def process_bytes(self, n_experts: int) -> int:
        """Give what its process takes, as planned and billed."""
        return self.experts_bytes(n_experts) + FUNCTION_OVERHEAD_BYTES

    def main_cache_bytes(self, n_experts: int) -> int:
        """Give the cache of an engine that keeps so many experts, and checks workers."""
        least = max(n_experts, self._model.n_experts_used)
        return self._model.budget_for(least) + _core.peer_check_bytes(self._model)


def bounded(table: PriceTable, memory_bytes: int) -> PriceTable:
    """Bound the main host's memory in a price table. Raises InputError below its smallest step."""
    if memory_bytes >= table.main.max_bytes:
        return table
    most = memory_bytes // table.main.step_bytes * table.main.step_bytes
    if not most:
        raise InputError(
            f"the main host has {mib(memory_bytes)}, and the smallest of the prices is "
            f"{mib(table.main.step_bytes)}"
        )
    return replace(table, main=replace(table.main, max_bytes=most))


def function_jobs(
    deployment: Deployment,
    sizes: WorkerSizes,
    *,
    conversations: int,
    worker_keys: Path | None = None,
) -> list[dict[str, Any]]:
    """Write down for Ray what to deploy.

    conversations: that may go on at a time; each has replicas of its own. worker_keys: where each node
    has what proves a worker (docs/remote.md). Without it workers listen within their machine only.
    """
    model = _core.ModelFile.open(deployment.model)
    blocks = [layer.block for layer in model.expert_layers]
    n_experts = deployment.placement.request.shape.n_experts
    local = bool(deployment.ray.pid)
    jobs = []
    for each in deployment.functions:
        # Ray's own Python process takes no whole core, and on one machine all share its cores anyhow.
        resources = {"num_cpus": 0.0 if local else each.threads, "memory": each.memory_bytes}
        jobs.append(
            {
                "app": deployment.apps[each.name],
                "most_replicas": each.replicas * conversations,
                "resources": resources,
                "spec": {
                    "model": deployment.model,
                    "experts": experts_text(each.experts, n_experts, blocks),
                    "memory_bytes": sizes.experts_bytes(len(each.experts)),
                    "threads": each.threads,
                    "host": HERE if worker_keys is None else NODE,
                    "more": [] if worker_keys is None else ["--keys", str(worker_keys)],
                },
            }
        )
    return jobs


def deploy(
    model: Path,
    placement: Placement,
    *,
    folder: Path,
    name: str,
    ray: str | None,
    n_functions: int,
    threads: int,
    keep_s: float,
    conversations: int = 1,
    worker_keys: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Path, Deployment]:
    """Deploy a placement's functions, and return where its record lies.

    folder: where records are kept. ray: an address of a cluster; None starts Ray here. worker_keys: see
    `function_jobs`. Raises InputError where nothing is to be deployed, or the name is taken.
    """
    path = record.path_of(folder, name)
    if path.exists():
        raise InputError(f"{name} is deployed already: remoe-edge deploy down {name}")
    sizes = WorkerSizes(model)
    functions = pack(placement, n_functions, sizes.process_bytes, most_threads=threads)
    if not functions:
        raise InputError(
            "there is nothing to deploy: every expert on this machine is cheapest and keeps the targets. "
            "--memory SIZE bounds what this machine may take"
        )
    ray_process.check_installed()
    if ray is not None:
        ray_process.check_reachable(ray)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    progress("starting Ray" if ray is None else f"connecting to Ray at {ray}")
    there = local_ray.start() if ray is None else Ray(ray)
    deployment = Deployment(
        name, str(model.absolute()), fingerprint(_core.ModelFile.open(str(model))), there,
        tuple(functions), placement, threads,
    )  # fmt: skip
    try:
        progress("deploying functions")
        jobs = function_jobs(
            deployment, sizes, conversations=conversations, worker_keys=worker_keys
        )
        ray_process.deploy(deployment, jobs, keep_s=keep_s)
        record.save(deployment, path)
    except BaseException:
        local_ray.stop(there)
        raise
    return path, deployment


def take_down(path: Path) -> Deployment:
    """End a deployment: its functions, and the Ray that was started for it."""
    deployment = record.load(path)
    ray = deployment.ray
    if ray.pid:
        local_ray.stop(ray)  # what ran there ends with it
    else:
        ray_process.take_down(deployment)
    path.unlink()
    return deployment
