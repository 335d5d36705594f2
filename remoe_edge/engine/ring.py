"""The order in which conversations have their slices: those whose experts overlap follow each other.

What a slice finds in the cache is what the ones before it have left. A ring keeps its order, so that each
conversation waits for one slice of every other, as with any order; only who comes anew, or has turned to
something else, is put between those two that it overlaps with most (docs/experiments/schedules.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

AGAIN = 8  # slices of a conversation after which its place is looked for again; at first sooner


class Ring:
    """Hold conversations by their ids, in order. One thread."""

    def __init__(self) -> None:
        self._order: list[int] = []
        self._uses: dict[int, npt.NDArray[np.float64]] = {}
        self._n_slices: dict[int, int] = {}
        self._next: int | None = None  # who follows the last slice

    @property
    def order(self) -> Sequence[int]:
        """Give the ids in order, from one of them on."""
        return tuple(self._order)

    def choose(self, waiting: Collection[int]) -> int:
        """Give whose slice follows the last one. Whoever does not wait any more leaves the ring."""
        self._keep(waiting)
        if self._next is None:
            self._next = self._order[0]
        return self._next

    def begin(self, id: int, waiting: Collection[int]) -> None:
        """Note that a conversation has its slice now."""
        self._keep(waiting)
        self._next = self._after(id)

    def used(self, id: int, uses: npt.NDArray[np.float64] | npt.NDArray[np.uint32]) -> None:
        """Note which experts a conversation's slice has used, and how often: all of them, in order."""
        if id not in self._order:
            return
        flat = uses.astype(np.float64).reshape(-1)
        self._uses[id] = flat / (float(np.linalg.norm(flat)) or 1.0)
        n = self._n_slices[id] = self._n_slices.get(id, 0) + 1
        if n in (1, 2, 4) or n % AGAIN == 0:
            self._place(id)

    def forget(self, id: int) -> None:
        """Let another conversation have an id."""
        self._keep([each for each in self._order if each != id])

    def _keep(self, waiting: Collection[int]) -> None:
        """Take in at the end who is new, and let go of who is not there any more."""
        here = set(waiting)
        if here == set(self._order):
            return
        while self._next is not None and self._next not in here:
            after = self._after(self._next)
            self._order.remove(self._next)
            self._next = after if self._order else None
        self._order = [id for id in self._order if id in here]
        self._order += sorted(here.difference(self._order))
        for kept in (self._uses, self._n_slices):
            for id in [id for id in kept if id not in here]:
                del kept[id]

    def _after(self, id: int) -> int:
        return self._order[(self._order.index(id) + 1) % len(self._order)]

    def _place(self, id: int) -> None:
        """Put a conversation where the ring's neighbours overlap most with it there."""
        others = [each for each in self._order if each != id]
        if len(others) < 2:
            return
        follows = self._next if self._next != id else self._after(id)

        def gain(i: int) -> float:
            before, after = others[i - 1], others[i]
            with_ = self._overlap(before, id) + self._overlap(id, after)
            return with_ - self._overlap(before, after)

        gains = [gain(i) for i in range(len(others))]
        best = max(range(len(others)), key=lambda i: (gains[i], -i))
        now = self._order.index(id) % len(others)
        if gains[best] > gains[now]:
            self._order = [*others[:best], id, *others[best:]]
            self._next = follows

    def _overlap(self, a: int, b: int) -> float:
        one, other = self._uses.get(a), self._uses.get(b)
        return 0.0 if one is None or other is None else float(one @ other)
