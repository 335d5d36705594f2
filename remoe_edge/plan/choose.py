"""`--cache plan:250ms`: the smallest budget that is expected to meet a time per token."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from remoe_edge.engine.budget import PLAN
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import BudgetError
from remoe_edge.machine import memory
from remoe_edge.plan.keeper import PlanKeeper
from remoe_edge.plan.kept_misses import recall
from remoe_edge.plan.measure import measure_machine, records_folder
from remoe_edge.plan.misses import MissModel, Published
from remoe_edge.plan.planner import Targets, make_plan
from remoe_edge.plan.sizes import ModelSizes
from remoe_edge.units import mib, parse_ms


@dataclass(frozen=True)
class Choice:
    """Hold the budget chosen for experts, and a line that says how it was found."""

    cache_bytes: int
    why: str
    keeper: PlanKeeper | None = None


def without_trace(sizes: ModelSizes, policy: str) -> MissModel:
    """Take the misses that an earlier plan kept for this model, else the published figures."""
    folder = records_folder()
    kept = None if folder is None else recall(folder, sizes, policy)
    return kept or Published(sizes.n_layers, sizes.top_k, sizes.total_experts)


def choose_cache(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    progress: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Choose for `settings.cache`, "plan:250ms", within the memory that is available now.

    It is where the engine begins; the keeper follows what tokens take. Where no routing of this model
    is known, and published figures of another put the target out of reach, it begins with all there
    is. `settings` name the context too. Raises BudgetError where computing alone takes longer, or
    this model's own routing says so.
    """
    tpot_ms = parse_ms(settings.cache.strip()[len(PLAN) :])
    left = memory.available()
    room = left.available_bytes - left.reserve_bytes
    measured = measure_machine(path, settings, memory_bytes=room, progress=progress)
    sizes = measured.machine.sizes
    misses = without_trace(sizes, settings.policy)
    machine, targets = measured.machine, Targets(tpot_ms=tpot_ms)
    begin = "planned for"
    try:
        plan = make_plan(machine, misses, room, targets, pools=False)
        assert plan.expected is not None  # make_plan has raised otherwise
        found = plan.expected
    except BudgetError:
        if not isinstance(misses, Published) or machine.resident_ms > tpot_ms:
            raise
        plan = make_plan(machine, misses, room, Targets(), pools=False)  # raises below the floor
        found = plan.points[-1]
        begin = "not expected to reach"
    keeper = PlanKeeper(
        tpot_ms, machine.resident_ms, sizes.n_layers * sizes.top_k, sizes.total_experts,
        found.n_slots, sizes.floor_slots,
    )  # fmt: skip
    return Choice(
        found.cache_bytes,
        f"{begin} {tpot_ms:g} ms per token: {mib(found.cache_bytes)} ({found.share:.0%} of the "
        f"experts) to begin with, {found.tpot_ms:.0f} ms expected by {plan.source}; then it follows what "
        "tokens take",
        keeper,
    )
