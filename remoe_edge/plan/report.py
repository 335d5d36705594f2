"""A plan as one JSON-ready object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from remoe_edge.machine.power_mode import power_mode
from remoe_edge.plan.latency import Machine
from remoe_edge.plan.planner import Plan, Point
from remoe_edge.units import MIB


def as_json(plan: Plan) -> dict[str, Any]:
    """Give everything that a plan found; bytes, milliseconds, shares of 1."""
    machine, sizes = plan.machine, plan.machine.sizes
    fit = asdict(plan.fit) if plan.fit is not None else None
    return {
        "model": sizes.path,
        "fingerprint": sizes.fingerprint,
        "misses_from": plan.source,
        "bound_from": plan.bound_source,
        "memory_bytes": plan.memory_bytes,
        "targets": asdict(plan.targets),
        "experts": {
            "layers": sizes.n_layers,
            "per_layer": sizes.n_experts,
            "used": sizes.top_k,
            "total": sizes.total_experts,
            "bytes": sum(layer.n_experts * layer.expert_bytes for layer in sizes.layers),
        },
        "dense_bytes": sizes.dense_bytes,
        "kv_bytes": sizes.kv_bytes,
        **machine_as_json(machine),
        "fit": None if fit is None else {"y": "cache MiB", "t": "tpot_ms", **fit},
        "points": [_point(plan, point) for point in plan.points],
        "expected": None if plan.expected is None else _point(plan, plan.expected),
        "bound": None if plan.bound is None else _point(plan, plan.bound),
        "pools": [{**asdict(pool), "winner": pool.winner} for pool in plan.pools],
        "notes": list(plan.notes),
    }


def machine_as_json(machine: Machine) -> dict[str, Any]:
    """Give what was measured of this machine."""
    return {
        "compute": asdict(machine.compute),
        "resident_ms": machine.resident_ms,
        "clocks": power_mode().line(),
        "storage": {
            "bytes_per_s": machine.bandwidth,
            "block_bytes": machine.sizes.layers[0].block_bytes,
            "depth": machine.reads.depth,
            "engine_over_probe": machine.reads.scale,
        },
    }


def _point(plan: Plan, point: Point) -> dict[str, Any]:
    fitted = None if plan.fit is None else plan.fit(point.cache_bytes / MIB)
    return {**asdict(point), "fitted_tpot_ms": fitted}
