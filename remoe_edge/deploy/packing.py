"""Which planned functions share a deployed one: tiers by use.

A plan has a function for each layer. On Ray each replica is a Python process of some hundred MiB, so a
few deployed functions take them all. A conversation asks one layer after the other, so layers in one
function never wait for each other. What matters is that a function which a prompt does not need may
stay asleep. Hence tiers: the first holds what every layer uses most of its remote experts, the last
what it hardly ever uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from remoe_edge.errors import InputError
from remoe_edge.placement.planner import Placement
from remoe_edge.units import mib


@dataclass(frozen=True)
class Function:
    """Hold one deployed function.

    experts: layer * n_experts + expert, ascending, layers counted as the model's expert layers.
    memory_bytes: of a replica, as it is granted and billed. rows: that a token of the answer is expected
    to ask of it.
    """

    name: str
    experts: tuple[int, ...]
    memory_bytes: int
    replicas: int
    threads: int
    rows: float


def pack(
    placement: Placement, n_functions: int, needed_bytes: Callable[[int], int], *,
    most_threads: int = 1,
) -> list[Function]:  # fmt: skip
    """Deal the placement's remote experts into so many functions, or fewer where there are few.

    needed_bytes: gives the memory of a replica by its number of experts. Raises InputError where a
    function is larger than the price table has.
    """
    if n_functions < 1:
        raise InputError(f"{n_functions} functions")
    shape, platform = placement.request.shape, placement.table.function
    ranked: list[list[tuple[float, int]]] = [[] for _ in range(shape.n_layers)]
    for planned in placement.functions:
        prompt_rows = planned.load.prompt_rows
        total = sum(prompt_rows) or 1.0
        for expert, rows in zip(planned.group.experts, prompt_rows, strict=True):
            ranked[planned.group.layer].append((planned.load.rows * rows / total, expert))
    most = max((len(layer) for layer in ranked), default=0)
    if not most:
        return []
    # What was planned for a layer serves every layer in turn.
    replicas = max(each.replicas for each in placement.functions)
    vcpus = max(platform.vcpus(each.memory_bytes) for each in placement.functions)
    threads = max(1, min(most_threads, math.ceil(vcpus)))
    n_functions = min(n_functions, most)
    found = []
    for tier in range(n_functions):
        mine, rows = [], 0.0
        for layer, experts in enumerate(ranked):
            ordered = sorted(experts, key=lambda each: (-each[0], each[1]))
            first, last = (len(ordered) * at // n_functions for at in (tier, tier + 1))
            mine += [layer * shape.n_experts + expert for _, expert in ordered[first:last]]
            rows += sum(each[0] for each in ordered[first:last])
        needed = needed_bytes(len(mine))
        sizes = platform.sizes(needed)
        if not sizes:
            raise InputError(
                f"a function of {len(mine)} experts needs {mib(needed)}, and the largest has "
                f"{mib(platform.max_bytes)}: deploy more functions (--functions)"
            )
        if mine:
            found.append(
                Function(f"f{tier}", tuple(sorted(mine)), sizes[0], replicas, threads, rows)
            )
    return found
