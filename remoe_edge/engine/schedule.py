"""Decide whose step is next: how many conversations together, and for how long before others.

Conversations push each other's experts out of the cache. While storage is the limit, one of them for a
slice of tokens is fastest: only the slice's first tokens read what the others have pushed out. Where
everything is resident, all of them in one batch are. `Schedule` tries both, measures, and keeps to what
is faster within the longest pause that it may make. Slices of one follow each other in a ring, neighbours
in which use much the same experts. No clock, no randomness, no engine here: the same calls give the same
turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.ring import Ring
from remoe_edge.engine.step_costs import LEAST_WAITING, StepCosts

LONGEST_SLICE = 256  # tokens: longer ones gain little
SHORT_SLICE = 32  # tokens: shorter ones lose much, where storage is the limit
LEAST_APART = 12  # tokens of a slice, by replays (docs/experiments/schedules.md)
LEAST_TRIED = 8  # steps of a group's size before it is judged
AGAIN = 32  # slices between two trials of what was slower
WORTH_AGAIN = 0.6  # of the best rate
_NO_END = 1 << 30


class Waiting(Protocol):
    """A conversation as the schedule sees it.

    id: its place. begun: it has had a step. prompts: its prompt is still being computed. since_s: when
    it last had a token, or came.
    """

    @property
    def id(self) -> int: ...
    @property
    def begun(self) -> bool: ...
    @property
    def prompts(self) -> bool: ...
    @property
    def since_s(self) -> float: ...


@dataclass(frozen=True)
class Turn:
    """Hold what the next step computes: a piece of one prompt, or a token of each of these.

    apart: one conversation goes on for so long that the policy does better with a memory of its own.
    """

    ids: tuple[int, ...]
    prompt: bool = False
    apart: bool = False


@dataclass
class _Slice:
    """Hold a turn that goes on: members, steps it may have, steps it has had."""

    ids: tuple[int, ...]
    prompt: bool
    n_most: int
    n_done: int = 0


class Schedule:
    """Choose turns.

    max_pause_s: how long a conversation that has begun may be without a step, as far as the steps
    themselves allow. max_wait_s: the same for a newcomer: while storage is the limit, no more begin than
    can have slices worth while without longer pauses. most: conversations in a group; 0 sets no limit,
    and with 1 every answer has the bits that it has alone. fixed: (group's size, slice's length) for
    experiments; size 0 takes all.
    """

    def __init__(
        self,
        max_pause_s: float = 5.0,
        *,
        max_wait_s: float = 180.0,
        most: int = 0,
        fixed: tuple[int, int] | None = None,
    ) -> None:
        self.max_pause_s = max_pause_s
        self.max_wait_s = max(max_wait_s, max_pause_s)
        self._most = most
        self.costs = StepCosts()
        self._fixed = fixed
        self._slice: _Slice | None = None
        self._n_slices = 0
        self._tried_at = 0
        self._next_trial = 0
        self._prompt_s = 0.0  # what a piece of a prompt takes, lately
        self._prompt_waits = False  # it waited for storage
        self._since_prompt = 0  # slices of tokens since a newcomer began
        self._prompted = -1  # whose prompt was computed last, with no token of others since
        self._ring = Ring()

    def next(self, waiting: Sequence[Waiting], now_s: float) -> Turn | None:
        """Give the next turn; None where nobody waits."""
        if not waiting:
            self._slice = None
            return None
        if self._fixed is None:
            waiting = self._admitted(waiting, now_s)
        running = self._go_on(waiting, now_s)
        if running is None:
            running = self._slice = self._begin(waiting, now_s)
        apart = len(running.ids) == 1 and running.n_most >= LEAST_APART
        return Turn(running.ids, running.prompt, apart)

    def measured(self, turn: Turn, took_s: float, waited_s: float) -> None:
        """Note what a turn took, and how much of that was waiting for storage."""
        running = self._slice
        if running is None or running.ids != turn.ids:
            return
        self._prompted = turn.ids[0] if turn.prompt else -1
        if turn.prompt:
            self._prompt_s += (took_s - self._prompt_s) * (0.3 if self._prompt_s else 1)
            self._prompt_waits = waited_s > LEAST_WAITING * took_s
        else:
            self.costs.add(len(turn.ids), running.n_done, took_s, waited_s)
        running.n_done += 1

    def used(self, id: int, uses: npt.NDArray[np.uint32]) -> None:
        """Note which experts, all of them in order, a conversation's slice has used, and how often."""
        self._ring.used(id, uses)

    def left(self, id: int) -> None:
        """Note that a conversation has ended: its place may be another's next."""
        self._ring.forget(id)

    def _admitted(self, waiting: Sequence[Waiting], now_s: float) -> Sequence[Waiting]:
        """Leave out newcomers for whom there is no room yet."""
        n_begun = sum(each.begun for each in waiting)
        if n_begun == len(waiting):
            return waiting
        step_s = self.costs.step_s(1, SHORT_SLICE)
        if step_s <= 0 or not self._limited(self._largest(n_begun)):
            return waiting
        room = 1 + int(self.max_pause_s / (SHORT_SLICE * step_s)) - n_begun
        newcomers = sorted((each for each in waiting if not each.begun), key=_by_waiting)
        late = [each for each in newcomers if now_s - each.since_s >= self.max_wait_s]
        let_in = {each.id for each in [*late, *newcomers[: max(0, room)]]}
        return [each for each in waiting if each.begun or each.id in let_in]

    # --- a slice that goes on ---

    def _go_on(self, waiting: Sequence[Waiting], now_s: float) -> _Slice | None:
        running = self._slice
        if running is None:
            return None
        here = {each.id: each for each in waiting}
        left = tuple(id for id in running.ids if id in here and here[id].prompts == running.prompt)
        if not left:
            return None
        running.ids = left
        if len(left) == len(waiting):
            # Nobody else waits. A new slice may take another size, but need not begin for that.
            return running if len(left) == 1 or running.n_done < running.n_most else None
        n_prompts = sum(each.prompts and each.id not in left for each in waiting)
        n_most = running.n_most
        if n_prompts and not running.prompt:  # somebody has come since the slice began
            n_most = min(n_most, self._length(len(left), len(waiting) - n_prompts, n_prompts))
        if running.n_done >= n_most:
            return None
        step_s = self._prompt_s if running.prompt else self.costs.step_s(len(left), running.n_done)
        over = any(
            now_s + step_s - each.since_s > (self.max_pause_s if each.begun else self.max_wait_s)
            for each in waiting
            if each.id not in left
        )
        return None if over and running.n_done > 0 else running

    # --- a new slice ---

    def _begin(self, waiting: Sequence[Waiting], now_s: float) -> _Slice:
        self._n_slices += 1
        ready = sorted(each.id for each in waiting if not each.prompts)
        first = self._first(waiting, ready, now_s)
        self._since_prompt = 0 if first.prompts and not first.begun else self._since_prompt + 1
        if first.prompts:
            # Between other conversations' tokens a piece at a time, but for storage: what a prompt reads
            # pushes out what they need, so that it is better done at once.
            at_once = not ready or self._limited(self._largest(len(ready)))
            return _Slice((first.id,), prompt=True, n_most=_NO_END if at_once else 1)
        size, n_most = self._size(len(ready), len(waiting) - len(ready))
        if size == 1:
            one, n_most = self._in_ring(ready, first, n_most, now_s)
            return _Slice((one,), prompt=False, n_most=n_most)
        at = ready.index(first.id) // size * size
        # A block of neighbours: llama.cpp computes places side by side at once. The last is filled up.
        begin = max(0, min(at, len(ready) - size))
        return _Slice(tuple(ready[begin : begin + size]), prompt=False, n_most=n_most)

    def _first(self, waiting: Sequence[Waiting], ready: Sequence[int], now_s: float) -> Waiting:
        """Give who has waited longest; of those who come at once, no more in a row than a pause holds.

        Between others' slices one may begin at any rate, after a round of them at the latest.
        """
        first = min(waiting, key=_by_waiting)
        if first.begun or not ready or self._fixed is not None:
            return first
        longest = min((each for each in waiting if not each.prompts), key=_by_waiting)
        if self._prompt_is_warm(ready, first, now_s):
            return longest
        fits = now_s + self._prompt_s - longest.since_s <= self.max_pause_s
        return first if fits or self._since_prompt >= len(ready) else longest

    def _prompt_is_warm(self, ready: Sequence[int], first: Waiting, now_s: float) -> bool:
        """Say whether a newcomer waits, since the cache holds what the last prompt has used.

        Its conversation goes on at once then, while storage is the limit: the next prompt would push all
        that out.
        """
        if self._prompted not in ready:
            return False
        late = now_s + self._prompt_s - first.since_s > self.max_wait_s
        return not late and self._limited(self._largest(len(ready)))

    def _in_ring(
        self, ready: Sequence[int], first: Waiting, n_most: int, now_s: float
    ) -> tuple[int, int]:
        """Give whose slice of n_most steps follows in the ring, and how long it may be.

        first: who has waited longest. In a ring that stays as it is, that one is next. Where the ring has
        changed, shorter slices make room, so that nobody waits longer than may be.
        """
        one = self._prompted if self._prompted in ready else self._ring.choose(ready)
        if one != first.id:
            step_s = self.costs.step_s(1, LONGEST_SLICE // 2)
            left_s = self.max_pause_s - (now_s - first.since_s)
            fits = int(left_s / step_s) if step_s > 0 else n_most
            half = max(1, n_most // 2)
            if fits < half:
                one = first.id
            n_most = half if fits < half else min(n_most, fits)
        self._ring.begin(one, ready)
        return one, n_most

    def _size(self, n: int, n_prompts: int) -> tuple[int, int]:
        """Choose how many of n go together, and for how many steps; n_prompts wait beside them."""
        if self._fixed is not None:
            return min(self._fixed[0] or n, n), self._fixed[1]
        sizes = group_sizes(min(n, self._most or n))
        if n == 1:
            return 1, LONGEST_SLICE
        lengths = {size: self._length(size, n, n_prompts) for size in sizes}
        untried = self._untried(sizes)
        if untried:
            return untried, min(lengths[untried], LEAST_TRIED)
        rates = {size: self.costs.rate(size, lengths[size]) for size in sizes if self._tried(size)}
        best = max(rates, key=lambda size: rates[size])
        trial = self._trial(sizes, best, rates)
        if trial:
            return trial, min(lengths[trial], 2 * LEAST_TRIED)
        return best, lengths[best]

    def _trial(self, sizes: Sequence[int], best: int, rates: Mapping[int, float]) -> int:
        """Give a size to try again, since costs change; 0 where it is not time for that."""
        since = self._n_slices - self._tried_at
        others = [size for size in sizes if size != best]
        if not self.costs.waits(best):  # storage is no limit, or is none any more
            others = [size for size in others if size > best]
            due = since >= AGAIN // 4
        else:
            near = [each for each in others if rates.get(each, 0) > WORTH_AGAIN * rates[best]]
            due = since >= (AGAIN if near else 4 * AGAIN)
            if near and self._next_trial % 4 != 0:  # one trial in four is of whatever size
                others = near
        if not due or not others:
            return 0
        self._tried_at = self._n_slices
        self._next_trial += 1
        return others[self._next_trial % len(others)]

    def _untried(self, sizes: Sequence[int]) -> int:
        """Give a size that has to be tried first; 0 where there is none.

        While storage is the limit, one conversation more is not tried anew, and neither is what lies
        between one and a group that was slower: a step of many reads for seconds.
        """
        most = sizes[-1]
        known = self._largest(most)
        near = self._tried(known) and 2 * known > most and self.costs.waits(known)
        if not self._tried(most) and not near:
            return most
        if not self.costs.waits(known):
            return 0  # storage is no limit: larger is better
        if self._tried(1) and self.costs.rate(1, SHORT_SLICE) > self.costs.rate(known, SHORT_SLICE):
            return 0
        return next((each for each in sizes[:-1] if not self._tried(each)), 0)

    def _limited(self, size: int) -> bool:
        """Say whether storage is the limit. An answer that repeats itself hides that; prompts show it."""
        return self._prompt_waits or self.costs.waits(size)

    def _tried(self, size: int) -> bool:
        return self.costs.n_steps(size) >= LEAST_TRIED

    def _length(self, size: int, n: int, n_prompts: int) -> int:
        """Give the steps that a slice may have, so that a round of all slices ends in time."""
        n_others = -(-n // size) - 1
        if n_others == 0 and n_prompts == 0:
            return LONGEST_SLICE
        step_s = self.costs.step_s(size, LONGEST_SLICE // 2)
        if step_s <= 0:
            return LONGEST_SLICE
        if n_prompts and not self._limited(size):
            # As long as a piece of a prompt takes: both go on at half their speed.
            return max(1, min(LONGEST_SLICE, round(self._prompt_s / step_s)))
        left_s = max(self.max_pause_s / 2, self.max_pause_s - n_prompts * self._prompt_s)
        fits = int(left_s / (max(1, n_others) * step_s))
        return max(1, min(LONGEST_SLICE, fits))

    def _largest(self, n: int) -> int:
        """Give the largest size up to n that steps were made of; n where there is none."""
        return next((each for each in range(n, 0, -1) if self.costs.n_steps(each)), n)


def _by_waiting(one: Waiting) -> tuple[float, int]:
    """Order conversations by how long they have waited, the longest first."""
    return one.since_s, one.id


def group_sizes(n: int) -> list[int]:
    """List the sizes of groups that are worth comparing for n conversations, the smallest first."""
    sizes = []
    size = 1
    while size < n:
        sizes.append(size)
        size *= 2
    return [*sizes, n]
