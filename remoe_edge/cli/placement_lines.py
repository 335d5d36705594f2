"""A placement as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoe_edge.units import mib

if TYPE_CHECKING:
    from remoe_edge.placement.planner import Placement


def placement_lines(placement: Placement) -> list[str]:
    """Say where experts go, how fast and how dear that is, and whether it pays."""
    shape, slo = placement.request.shape, placement.request.slo
    asked = [
        f"{name} ≤ {limit:g} ms"
        for name, limit in (("TPOT", slo.tpot_ms), ("TTFT", slo.ttft_ms))
        if limit is not None
    ]
    lines = [
        f"targets: {' and '.join(asked)}; prices: {placement.table.name} "
        f"({placement.table.currency})",
        f"main host: {mib(placement.main_bytes)}, {placement.n_local} of {shape.n_experts} experts of "
        f"each layer; the worst case asks for {placement.pre_allocation.n_local}",
    ]
    if placement.functions:
        sizes = [each.memory_bytes for each in placement.functions]
        replicas = sum(each.replicas for each in placement.functions)
        lines.append(
            f"functions: {len(sizes)}, {replicas} replicas, {mib(min(sizes))} to {mib(max(sizes))} "
            f"each (by {placement.method})"
        )
    else:
        lines.append("functions: none")
    lines.append(
        f"expected: {placement.times.tpot_ms:.1f} ms a token, {placement.times.ttft_ms:.0f} ms to "
        f"the first (all local: {placement.all_local_times.tpot_ms:.1f} and "
        f"{placement.all_local_times.ttft_ms:.0f})"
    )
    cost, alone = placement.bill.total, placement.all_local.total
    parts = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}"
        for name, value in placement.bill.as_dict().items()
        if value and name != "total"
    )
    lines.append(f"a request: {cost:.4g} {placement.table.currency} ({parts})")
    if placement.pays:
        lines.append(f"all local: {alone:.4g}; functions save {1 - cost / alone:.0%}")
    else:
        lines.append(f"all local: {alone:.4g}; functions do not pay here")
    return lines
