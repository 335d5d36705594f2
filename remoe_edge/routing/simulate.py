"""Replay traces through the engine's own eviction policies and compare them with the optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.files.pictures import drawn_name, pyplot, save
from remoe_edge.native import _core
from remoe_edge.routing.replay import check_slots
from remoe_edge.routing.trace import Trace
from remoe_edge.units import parse_bytes

ORACLE = "belady"
BASELINE = "lru"


@dataclass
class Outcome:
    """Hold the counts of one policy at one cache size over one trace."""

    policy: str
    slots: int
    cache_share: float
    tokens: int
    events: int
    hits: int
    misses: int
    evictions: int
    hit_rate: float
    misses_per_token: float
    misses_per_event: float
    bytes_per_token: float | None
    gap_share: float | None  # of the misses between LRU and the optimum, how many are saved


def parse_cache(text: str, total: int, expert_bytes: float | None = None) -> int:
    """Turn `25%` of all experts, a size such as `1500MiB`, or a number of slots, into slots.

    Raises InputError where it is none of them, leaves no slot, or is a size and an expert's is not
    known.
    """
    try:
        if text.endswith("%"):
            slots = round(float(text[:-1]) / 100 * total)
        elif text.isdecimal():
            slots = int(text)
        elif expert_bytes:
            slots = min(total, int(parse_bytes(text) / expert_bytes))
        else:
            raise InputError(f"--cache {text}: the trace does not say how large an expert is: give "
                             "--expert-bytes, a share such as 25% or a number of slots")  # fmt: skip
    except (ValueError, OverflowError):
        raise InputError(f"--cache {text}: give a share such as 25% or a number of slots") from None
    if not 1 <= slots <= total:
        raise InputError(f"--cache {text}: {slots} slots of {total} experts in all")
    return slots


def parse_policies(text: str) -> list[str]:
    """Turn `all` or `lru,arc` into policy names. Raises InputError for an unknown one."""
    known: list[str] = _core.policy_names()
    if text == "all":
        return known
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"unknown policy '{name}'; known: {', '.join(known)}")
    if not names:
        raise InputError(f"--policy: name at least one of {', '.join(known)}")
    return names


def simulate(
    trace: Trace,
    policies: Sequence[str],
    slots: Sequence[int],
    *,
    profile: bytes | None = None,
    warm_tokens: int = 0,
    expert_bytes: int | None = None,
) -> list[Outcome]:
    """Replay `trace` through each policy at each cache size, starting empty.

    Steps before `warm_tokens` fill the cache and are not counted. `expert_bytes` turns misses into
    bytes. LRU and the oracle always run, since the gap between them is the measure.
    A step with more experts than slots comes in waves, as in the engine. Raises BudgetError where
    there are fewer slots than one token needs.
    """
    for n_slots in slots:
        check_slots(n_slots, trace.top_k)
    columns = trace.columns()
    first = 0
    if warm_tokens > 0:
        change = (trace.step[1:] != trace.step[:-1]).nonzero()[0] + 1
        if warm_tokens > len(change):
            raise InputError(f"{trace.path}: has {len(change) + 1} steps, {warm_tokens} to warm up")
        first = int(change[warm_tokens - 1])
    rows = trace.rows(0)
    tokens = int(trace.n_tokens[rows[rows >= first]].sum(dtype=int))
    expert_bytes = expert_bytes or trace.expert_bytes
    outcomes = []
    for n_slots in slots:
        counts: dict[str, dict[str, int]] = {}
        for policy in dict.fromkeys([BASELINE, ORACLE, *policies]):
            counts[policy] = _core.simulate(
                columns, trace.n_layers, trace.n_experts, n_slots, policy, first, profile
            )
        gap = counts[BASELINE]["misses"] - counts[ORACLE]["misses"]
        for policy in policies:
            got = counts[policy]
            asked = got["hits"] + got["misses"]
            per_token = got["misses"] / tokens if tokens else math.nan
            outcomes.append(
                Outcome(
                    policy=policy,
                    slots=n_slots,
                    cache_share=n_slots / (trace.n_layers * trace.n_experts),
                    tokens=tokens,
                    events=got["events"],
                    hits=got["hits"],
                    misses=got["misses"],
                    evictions=got["evictions"],
                    hit_rate=got["hits"] / asked if asked else math.nan,
                    misses_per_token=per_token,
                    misses_per_event=got["misses"] / got["events"] if got["events"] else math.nan,
                    bytes_per_token=per_token * expert_bytes if expert_bytes else None,
                    gap_share=(counts[BASELINE]["misses"] - got["misses"]) / gap if gap else None,
                )
            )
    return outcomes


def as_json(trace: Trace, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Give the outcomes and what they were measured on as one JSON-ready object."""
    return {
        "trace": trace.path,
        "model": trace.meta.get("model"),
        "n_layers": trace.n_layers,
        "n_experts": trace.n_experts,
        "top_k": trace.top_k,
        "with_probabilities": trace.has_probs(),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def plot(outcomes: Sequence[Outcome], path: str, title: str) -> None:
    """Draw misses per token against cache size, a line per policy, into an image file.

    Raises UnsupportedError without matplotlib, ReadError where the file cannot be written.
    """
    drawn = pyplot()
    figure, axes = drawn.subplots(figsize=(8, 5), layout="constrained")
    for policy in dict.fromkeys(outcome.policy for outcome in outcomes):
        mine = sorted((o for o in outcomes if o.policy == policy), key=lambda o: o.slots)
        axes.plot(
            [100 * o.cache_share for o in mine],
            [o.misses_per_token for o in mine],
            "k--" if policy == ORACLE else "o-",
            label=policy,
        )
    axes.set(xlabel="cache, % of all experts", ylabel="misses per token", title=drawn_name(title))
    axes.set_ylim(bottom=0)
    axes.legend()
    try:
        save(figure, Path(path), dpi=150)
    finally:
        drawn.close(figure)
