"""Longest processing time first: share jobs out among z replicas, the longest job first.

The last to finish is within 4/3 − 1/(3z) of the best possible (Graham 1969).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from remoe_edge.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Hold each job's replica, and the load of the busiest one."""

    replica: tuple[int, ...]
    makespan: float


def longest_first(jobs: Sequence[float], n_replicas: int) -> Schedule:
    """Give every job, longest first, to the replica that has least to do.

    Raises InputError for no replicas.
    """
    if n_replicas < 1:
        raise InputError(f"{n_replicas} replicas have nothing to run on")
    if n_replicas == 1:
        return Schedule((0,) * len(jobs), float(sum(jobs)))
    loads = [(0.0, replica) for replica in range(n_replicas)]
    given = [0] * len(jobs)
    for job in sorted(range(len(jobs)), key=lambda i: -jobs[i]):
        load, replica = loads[0]
        heapq.heapreplace(loads, (load + jobs[job], replica))
        given[job] = replica
    return Schedule(tuple(given), max(load for load, _ in loads))


def bound(n_replicas: int) -> float:
    """Give how far from the optimum the makespan can be at most."""
    return 4 / 3 - 1 / (3 * n_replicas)
