"""A replica on Ray Serve: it supervises a worker, and hands its address out as leases.

Ray makes one of these in a process of its own for each replica. A lease is a streaming call that stays
open: as long as it does, Ray counts the replica as busy and lets it live. It ends with the call, with
the worker, or with the replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from remoe_edge.deploy.worker_process import WorkerProcess, worker_command

BEAT_S = 0.5  # between looks at the worker while a lease is open
NODE = "node"  # as a host: the address of the machine that the replica is on


class Replica:
    """Supervise one worker. spec: the arguments of `worker_command`, HOST in place of `listen`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        spec = dict(spec)
        host = spec.pop("host")
        more = spec.pop("more", [])
        listen = f"{node_address() if host == NODE else host}:0"
        self._worker = WorkerProcess(worker_command(**spec, listen=listen, more=more))
        self._started = time.monotonic()
        self._leases = 0

    async def lease(self) -> AsyncIterator[dict[str, Any]]:
        """Give the worker's address, then a beat now and then. Raises where the worker fails."""
        self._worker.check()
        self._leases += 1
        yield {
            "address": self._worker.address,
            "budget_bytes": self._worker.budget_bytes,
            "start_ms": self._worker.start_ms if self._leases == 1 else 0.0,
            "worker_pid": self._worker.pid,
            "replica_pid": os.getpid(),
        }
        while True:
            await asyncio.sleep(BEAT_S)
            self._worker.check()
            yield {"counts": self._worker.counts()}

    def check_health(self) -> None:
        """Raise where the worker is gone, stuck, or no longer computes what it did: Ray replaces us."""
        self._worker.check()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._worker.stop()


def node_address() -> str:
    """Ask Ray for the address of this machine in the cluster."""
    import ray

    return str(ray.util.get_node_ip_address())
