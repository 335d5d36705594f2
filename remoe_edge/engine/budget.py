"""From what a user asks for (`--cache`) to slots: how many experts may be resident at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remoe_edge.engine.elastic_budget import CGROUP_RESERVE_BYTES, MACHINE_RESERVE_BYTES
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.machine import memory
from remoe_edge.units import MIB, mib, parse_bytes, parse_ms

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel
    from remoe_edge.machine.gpu import Gpu

PLAN = "plan:"
_GPU_RESERVE_BYTES = 256 * MIB  # for what kernels and the driver take as they run


@dataclass(frozen=True)
class Budget:
    """Hold the outcome: slots, the bytes that they take, and a line that says how it was found.

    most_slots: where the cache follows what memory is free, the most that it may grow to; else 0.
    """

    n_slots: int
    n_bytes: int
    why: str
    most_slots: int = 0


def check(spec: str) -> None:
    """Refuse a `--cache` value that makes no sense, before anything is loaded. Raises InputError."""
    text = spec.strip().lower()
    if text == "auto":
        return
    if text.endswith("%"):
        _fraction(text)
        return
    if is_plan(text):
        parse_ms(text.removeprefix(PLAN))
        return
    parse_bytes(text)


def is_plan(spec: str) -> bool:
    """Say whether a budget is to be found for a time per token: `plan:250ms`."""
    return spec.strip().lower().startswith(PLAN)


def is_followed(spec: str) -> bool:
    """Say whether the cache changes while the engine runs, with free memory or a plan."""
    return spec.strip().lower() == "auto" or is_plan(spec)


def _fraction(text: str) -> float:
    try:
        fraction = float(text[:-1]) / 100
    except ValueError:
        raise InputError(f"'{text}' is not a share; write for example 30%") from None
    if not 0 < fraction <= 1:
        raise InputError(f"--cache {text} is not between 0% and 100%")
    return fraction


def floor_bytes(model: StreamedModel) -> int:
    """Compute the bytes that one token's experts of one layer take."""
    return int(model.budget_for(max(1, model.n_experts_used)))


def resolve(
    spec: str,
    model: StreamedModel,
    untouched_bytes: int,
    beside_bytes: int = 0,
    *,
    follow: bool = False,
    gpu: Gpu | None = None,
) -> Budget:
    """Decide the slots for a loaded model.

    `untouched_bytes`: buffers that llama.cpp has reserved but not yet written to, which `auto` leaves
    room for. `beside_bytes`: what checking peers and copies of routers on a GPU take, which the budget
    pays for too. `follow`: the size is a plan's, and may grow as `auto` does. `gpu`: that has the cache,
    as it is now; None for the machine's memory. Raises BudgetError below the floor, and for a
    size that the cgroup's limit has no room for; InputError for a malformed spec.
    """
    text = spec.strip().lower()
    total = model.total_experts
    floor = max(1, model.n_experts_used)
    most_slots = 0
    if text.endswith("%"):
        n_slots = min(total, max(1, round(_fraction(text) * total)))
        if beside_bytes:
            n_slots = model.slots_for(max(0, model.budget_for(n_slots) - beside_bytes))
        why = f"{text} of {total} experts"
    elif text == "auto":
        room = memory.available()
        n_bytes = room.available_bytes - untouched_bytes - room.reserve_bytes
        n_slots = model.slots_for(max(0, n_bytes - beside_bytes))
        follow = gpu is None
        why = (
            f"auto: {mib(room.available_bytes)} by {room.limited_by}, less {mib(untouched_bytes)} for "
            f"compute buffers and {mib(room.reserve_bytes)} kept free"
        )
        if gpu is not None and (gpu.free_bytes - _GPU_RESERVE_BYTES < n_bytes or not gpu.unified):
            # Its own memory; of one memory, whichever says less: it is counted once.
            n_bytes = gpu.free_bytes - _GPU_RESERVE_BYTES
            n_slots = model.slots_for(max(0, n_bytes - beside_bytes))
            why = f"auto: {mib(gpu.free_bytes)} on {gpu.name}, less {mib(_GPU_RESERVE_BYTES)} kept free"
    else:
        n_bytes = parse_bytes(text)
        n_slots = model.slots_for(max(0, min(n_bytes, 1 << 62) - beside_bytes))
        if follow:  # a plan knows of nothing beside the experts, and begins with what can be had
            n_slots = max(n_slots, floor)
        why = f"{mib(n_bytes)} asked for"
    if n_slots < floor:
        need = floor_bytes(model)
        kib = -(-(need + beside_bytes) // 1024)
        beside = f", and what stands beside the cache {mib(beside_bytes)}" if beside_bytes else ""
        raise BudgetError(
            f"the expert cache is below the floor ({why}): one token uses {floor} experts of a layer at "
            f"once, which take {mib(need)}{beside}; use --cache {kib}KiB or more"
        )
    if text != "auto" and gpu is None:
        _check_limit(why, model, n_slots, untouched_bytes + beside_bytes)
    if follow and any(memory.soft_limits()):
        # A limit on addresses counts slots that may be, and gives nothing back: it grows no further.
        most_slots = n_slots
    elif follow:
        most_slots = max(n_slots, _most_slots(model, untouched_bytes + beside_bytes))
    return Budget(n_slots, int(model.budget_for(n_slots)) + beside_bytes, why, most_slots)


def _check_limit(why: str, model: StreamedModel, n_slots: int, later_bytes: int) -> None:
    """Refuse a slab that the kernel would end this process for, once experts have filled it.

    What llama.cpp may touch later is not counted against it, since it is a bound and seldom reached.
    """
    room = memory.available()
    slab_bytes = int(model.budget_for(n_slots))
    if room.cgroup_limit_bytes is None or slab_bytes <= room.available_bytes:
        return
    fits = (room.available_bytes - later_bytes - room.reserve_bytes) // MIB
    enough = fits * MIB >= floor_bytes(model)
    advice = (
        f"use --cache {fits}MiB or auto" if enough else "raise it, or lower --ctx or --parallel"
    )
    raise BudgetError(
        f"the expert cache ({why}) takes {mib(slab_bytes)}, and {room.limited_by} leaves "
        f"{mib(room.available_bytes)} beside what is loaded already: {advice}"
    )


def _most_slots(model: StreamedModel, taken_bytes: int) -> int:
    """Say how far a cache may grow if all others leave: what memory there is, less what we hold."""
    limited = memory.cgroup_limit_bytes() is not None
    reserve = CGROUP_RESERVE_BYTES if limited else MACHINE_RESERVE_BYTES
    room = memory.total_bytes() - memory.anonymous_bytes() - taken_bytes - reserve
    return model.slots_for(max(0, room))
