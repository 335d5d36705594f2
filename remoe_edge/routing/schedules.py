"""Replay conversations that take turns: what a schedule costs in misses, from traces made one by one.

A schedule is written as a slice's length (`32`: each conversation has 32 tokens, then the next), as
groups (`4x32`: four at a time, 32 tokens each), as `turns` (one token each) or as `batch` (all in one
step). `alone` is one conversation after another: nobody takes anybody's place in the cache.

`:near` behind it (`4x32:near`) has those together, or one after another, whose experts overlapped most
lately; `:best` those whose experts will overlap most in the slice to come. Nobody can know that: it shows
what there is to gain. In each round every conversation has its slice, whatever the order. `:ring`, for
slices of one, is the order that the engine's own schedule keeps (engine/ring.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.ring import Ring
from remoe_edge.engine.schedule import LEAST_APART
from remoe_edge.errors import InputError
from remoe_edge.native import _core
from remoe_edge.routing.replay import check_slots
from remoe_edge.routing.trace import Trace

Routed = npt.NDArray[np.int16]  # [layers, tokens, k]
ALONE = "alone"


@dataclass(frozen=True)
class Plan:
    """Hold a schedule: conversations together, and tokens of each before others; 0 is all.

    by: what chooses members: "" their numbers, "near", "best" or "ring" their experts.
    """

    name: str
    group: int
    length: int
    by: str = ""


@dataclass(frozen=True)
class Outcome:
    """Hold what a schedule misses; times_alone: against one conversation after another."""

    schedule: str
    policy: str
    slots: int
    cache_share: float
    conversations: int
    tokens: int
    misses: int
    misses_per_token: float
    times_alone: float


def parse_plans(text: str) -> list[Plan]:
    """Read schedules, with commas between them. Raises InputError for what is none."""
    plans = [Plan(ALONE, 1, 0)]
    for name in filter(None, (each.strip() for each in text.split(","))):
        found = re.fullmatch(r"(?:(\d+)x)?(\d+)(?::(near|best|ring))?", name)
        if name == "turns":
            plans.append(Plan(name, 1, 1))
        elif name == "batch":
            plans.append(Plan(name, 0, 0))
        elif found and int(found[2]) > 0 and int(found[1] or 1) > 0 and _is_one(found):
            plans.append(Plan(name, int(found[1] or 1), int(found[2]), found[3] or ""))
        elif name != ALONE:
            raise InputError(
                f"'{name}' is no schedule: write turns, batch, a slice's length such as 32, or groups "
                "such as 4x32; :near, :best and, for slices of one, :ring may follow"
            )
    return plans


def _is_one(found: re.Match[str]) -> bool:
    return found[3] != "ring" or int(found[1] or 1) == 1


def conversations(trace: Trace) -> list[Routed]:
    """Cut a trace into its answers' tokens: a prompt begins another. Raises InputError for one alone."""
    routed = trace.routed()
    rows = trace.rows(0)
    decoded = np.repeat(trace.phase[rows] == 1, trace.n_tokens[rows])
    begins = np.flatnonzero(decoded & ~np.concatenate([[False], decoded[:-1]]))
    ends = np.flatnonzero(decoded & ~np.concatenate([decoded[1:], [False]])) + 1
    found = [routed[:, b:e] for b, e in zip(begins, ends, strict=True)]
    if len(found) < 2:
        raise InputError(
            f"{trace.path}: a schedule takes at least two conversations; `remoe-edge trace` records an "
            "answer to each of several prompts"
        )
    return found


class Overlap:
    """Tell how far the experts overlap that conversations use within a slice's length of where they are.

    future: those that they will use, rather than those that they have used.
    """

    def __init__(
        self, talks: Sequence[Routed], n_experts: int, length: int, *, future: bool
    ) -> None:
        self._talks, self._n_experts = talks, n_experts
        self._length, self._future = length, future

    def uses(self, talk: int, at: int) -> npt.NDArray[np.float64]:
        """Count a conversation's uses of each expert of each layer, as a vector of length 1."""
        begin, end = (at, at + self._length) if self._future else (max(0, at - self._length), at)
        routed = self._talks[talk][:, begin:end]
        found = np.zeros((len(routed), self._n_experts))
        for layer, experts in enumerate(routed):
            found[layer] = np.bincount(experts.reshape(-1), minlength=self._n_experts)
        flat = found.reshape(-1)
        made: npt.NDArray[np.float64] = flat / (np.linalg.norm(flat) or 1.0)
        return made

    def groups(self, waiting: Sequence[int], at: Sequence[int], size: int) -> list[list[int]]:
        """Order all that wait into groups: each begins with who is nearest to the group before, and is
        filled with who is nearest to it."""
        left = {talk: self.uses(talk, at[talk]) for talk in waiting}
        made: list[list[int]] = []
        before: npt.NDArray[np.float64] | float = 0.0
        while left:
            group: list[int] = []
            while left and len(group) < size:
                talk = max(left, key=lambda each: (float(np.sum(before * left[each])), -each))
                group.append(talk)
                uses = left.pop(talk)
                before = uses if len(group) == 1 else before + uses
            made.append(group)
        return made


def ring_turns(
    lengths: Sequence[int], plan: Plan, overlap: Overlap
) -> Iterator[list[tuple[int, int]]]:
    """Yield the steps of slices of one in the order of the engine's ring."""
    at, ring = [0] * len(lengths), Ring()
    while waiting := [i for i, length in enumerate(lengths) if at[i] < length]:
        one = ring.choose(waiting)
        ring.begin(one, waiting)
        for _ in range(min(plan.length, lengths[one] - at[one])):
            yield [(one, at[one])]
            at[one] += 1
        ring.used(one, overlap.uses(one, at[one]))


def turns(
    lengths: Sequence[int], plan: Plan, overlap: Overlap | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Yield the steps of a schedule, each a list of (conversation, its token).

    overlap: chooses who is together, and who follows whom, rather than their numbers.
    """
    if plan.by == "ring" and overlap is not None:
        yield from ring_turns(lengths, plan, overlap)
        return
    n = len(lengths)
    size, most = plan.group or n, plan.length or max(lengths)
    at = [0] * n
    while waiting := [i for i in range(n) if at[i] < lengths[i]]:
        groups: Sequence[Sequence[int]] = (
            [range(begin, min(begin + size, n)) for begin in range(0, n, size)]
            if overlap is None
            else overlap.groups(waiting, at, size)
        )
        for group in groups:
            for _ in range(most):
                step = [(i, at[i]) for i in group if at[i] < lengths[i]]
                if not step:
                    break
                for i, _ in step:
                    at[i] += 1
                yield step


def scheduled(
    trace: Trace, talks: Sequence[Routed], plan: Plan
) -> tuple[Trace, npt.NDArray[np.int32]]:
    """Make the trace that conversations would have left in this schedule; say whose each event is.

    -1: of several, or of slices so short that the engine does not tell conversations apart.
    """
    n_layers = trace.n_layers
    n_tokens: list[int] = []
    whose: list[int] = []
    experts: list[int] = []
    offsets, ids, ids_at = [0], [], []
    at = 0
    apart = plan.length == 0 or plan.length >= LEAST_APART
    overlap = None
    if plan.by:
        overlap = Overlap(talks, trace.n_experts, plan.length, future=plan.by == "best")
    for step in turns([talk.shape[1] for talk in talks], plan, overlap):
        taken = np.stack([talks[i][:, token] for i, token in step], axis=1)  # [layers, tokens, k]
        for layer in range(n_layers):
            distinct = dict.fromkeys(taken[layer].reshape(-1).tolist())
            experts.extend(distinct)
            offsets.append(len(experts))
            n_tokens.append(len(step))
            whose.append(step[0][0] if apart and len(step) == 1 else -1)
            ids_at.append(at)
            at += 2 * taken[layer].size
        ids.append(taken.reshape(-1))
    n = len(n_tokens)
    made = Trace(
        path=trace.path, n_layers=n_layers, n_experts=trace.n_experts, top_k=trace.top_k,
        fingerprint=trace.fingerprint, meta=trace.meta,
        step=np.repeat(np.arange(n // n_layers, dtype=np.int64), n_layers),
        layer=np.tile(np.arange(n_layers, dtype=np.uint16), n // n_layers),
        phase=np.ones(n, np.uint8),
        n_tokens=np.array(n_tokens, np.uint32),
        offsets=np.array(offsets, np.int64),
        experts=np.array(experts, np.uint16),
        ids_at=np.array(ids_at, np.int64),
        probs_at=np.full(n, -1, np.int64),
        n_prob_tokens=np.zeros(n, np.uint16),
        data=np.concatenate(ids).astype("<u2").view(np.uint8),
    )  # fmt: skip
    return made, np.array(whose, np.int32)


def simulate(
    trace: Trace,
    plans: Sequence[Plan],
    policies: Sequence[str],
    slots: Sequence[int],
    profile: bytes | None = None,
) -> list[Outcome]:
    """Replay a trace's conversations in each schedule, by the engine's own cache, which begins empty.

    The oracle knows each schedule's own future: what the best policy could do in that order.

    Raises BudgetError where there are fewer slots than one token needs, InputError for a trace with
    less than two conversations.
    """
    for n_slots in slots:
        check_slots(n_slots, trace.top_k)
    talks = conversations(trace)
    tokens = sum(talk.shape[1] for talk in talks)
    columns = []
    for plan in plans:
        made, whose = scheduled(trace, talks, plan)
        columns.append({**made.columns(), "conversation": whose})
    outcomes = []
    for n_slots in slots:
        for policy in policies:
            alone = 0
            for plan, replayed in zip(plans, columns, strict=True):
                counts = _core.simulate(
                    replayed, trace.n_layers, trace.n_experts, n_slots, policy, 0, profile
                )
                misses = counts["misses"]
                alone = misses if plan.name == ALONE else alone
                outcomes.append(
                    Outcome(
                        schedule=plan.name,
                        policy=policy,
                        slots=n_slots,
                        cache_share=n_slots / (trace.n_layers * trace.n_experts),
                        conversations=len(talks),
                        tokens=tokens,
                        misses=misses,
                        misses_per_token=misses / tokens,
                        times_alone=misses / alone if alone else 1.0,
                    )
                )
    return outcomes


def as_json(trace: Trace, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Give the outcomes and what they were measured on as one JSON-ready object."""
    return {
        "trace": trace.path,
        "model": trace.meta.get("model"),
        "schedules": [asdict(outcome) for outcome in outcomes],
    }
