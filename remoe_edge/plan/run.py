"""From a model's path and a target to a plan: measure, replay, search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import RemoeError
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


def run_plan(
    path: Path,
    settings: EngineSettings,
    *,
    memory_bytes: int,
    targets: Targets,
    trace_path: Path | None = None,
    profile_path: Path | None = None,
    pools: bool = True,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Plan for a model on this machine, for an engine with `settings`.

    See `make_plan` and `measure_machine` for what is raised.
    """
    policy = settings.policy
    profile = None if profile_path is None else read_profile(profile_path)
    file = _core.ModelFile.open(str(path))
    trained = file.unsigned(f"{file.architecture}.context_length")
    settings = settings.replace(n_ctx=settings.context(trained))
    sizes = measure_sizes(path, settings.n_ctx)
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
        path,
        settings,
        memory_bytes=min(memory_bytes, available().available_bytes),
        fresh=fresh,
        progress=progress,
    )
    misses = misses or without_trace(sizes, policy)
    plan = make_plan(
        measured.machine, misses, memory_bytes, targets, pools=pools, notes=(*notes, *measured.notes),
        progress=progress,
    )  # fmt: skip
    folder = records_folder()
    if isinstance(misses, Replayed) and profile is None and folder is not None:
        try:
            keep(folder, sizes, misses)
        except (OSError, RemoeError) as error:
            return replace(plan, notes=(*plan.notes, f"the misses are not kept: {error}"))
    return plan
