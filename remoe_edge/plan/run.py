"""From a model's path and a target to a plan: measure, replay, search."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError, RemoeError
from remoe_edge.machine.memory import available
from remoe_edge.native import _core
from remoe_edge.plan.choose import without_trace
from remoe_edge.plan.kept_misses import keep
from remoe_edge.plan.measure import measure_machine, records_folder
from remoe_edge.plan.misses import ENOUGH_TOKENS, MissModel, Replayed, prepare
from remoe_edge.plan.planner import Plan, Targets, make_plan
from remoe_edge.plan.sizes import measure_sizes
from remoe_edge.profile import read_profile
from remoe_edge.routing.trace import read_trace


def default_policy() -> str:
    """Say which policy an engine runs unless told otherwise."""
    from remoe_edge.engine.engine import Engine

    return str(inspect.signature(Engine).parameters["policy"].default)


def default_context(path: Path) -> int:
    """Say which context an engine takes unless told otherwise."""
    from remoe_edge.engine.engine import DEFAULT_CONTEXT

    file = _core.ModelFile.open(str(path))
    trained = file.unsigned(f"{file.architecture}.context_length") or DEFAULT_CONTEXT
    return min(trained, DEFAULT_CONTEXT)


def run_plan(
    path: Path,
    *,
    memory_bytes: int,
    targets: Targets,
    trace_path: Path | None = None,
    policy: str | None = None,
    profile_path: Path | None = None,
    n_ctx: int = 0,
    pools: bool = True,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Plan:
    """Plan for a model on this machine. See `make_plan` and `measure_machine` for what is raised."""
    policy = policy or default_policy()
    if policy not in _core.live_policy_names():
        known = ", ".join(_core.live_policy_names())
        raise InputError(f"no policy '{policy}' for a running engine; there are: {known}")
    profile = None if profile_path is None else read_profile(profile_path)
    n_ctx = n_ctx or default_context(path)
    sizes = measure_sizes(path, n_ctx)
    misses: MissModel | None = None
    notes: list[str] = []
    if trace_path is not None:
        trace = prepare(
            read_trace(trace_path), sizes.n_layers, sizes.n_experts, sizes.top_k, sizes.fingerprint
        )
        if trace.total_tokens < ENOUGH_TOKENS:
            notes.append(
                f"{trace_path} has {trace.total_tokens} tokens: experts used for the first time make "
                f"up part of its misses; {ENOUGH_TOKENS} or more say more"
            )
        misses = Replayed(trace, policy, profile)
    measured = measure_machine(
        path, memory_bytes=min(memory_bytes, available().available_bytes), n_ctx=n_ctx,
        fresh=fresh, progress=progress, **settings,
    )  # fmt: skip
    misses = misses or without_trace(sizes, policy)
    plan = make_plan(
        measured.machine, misses, memory_bytes, targets, pools=pools, notes=(*notes, *measured.notes),
        progress=progress,
    )  # fmt: skip
    if isinstance(misses, Replayed) and profile is None:
        try:
            keep(records_folder(), sizes, misses)
        except (OSError, RemoeError) as error:
            return replace(plan, notes=(*plan.notes, f"the misses are not kept: {error}"))
    return plan
