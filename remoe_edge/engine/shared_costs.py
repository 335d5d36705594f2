"""What steps cost, shared equally among the answers of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from remoe_edge.engine.conversation import Conversation


class SharedCosts:
    """Keep what the core has counted, and give each answer its share.

    Shares are added up when a step's members differ from those before, and not at every step: for a small
    model that would be a few percent of a token's time. counts: the core's, none where nothing is
    streamed.
    """

    def __init__(self, counts: Callable[[], dict[str, int]]) -> None:
        self._counts = counts
        self._last = self._settled = counts()
        self._members: list[Conversation] = []  # of the steps since `_settled`
        self.names = list(self._last)

    def step(self, members: Sequence[Conversation]) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Note a step that has been computed; give the counts before it and after it."""
        if self._members != members:
            self.settle()
            self._members = list(members)
        before, self._last = self._last, self._counts()
        return before, self._last

    def settle(self) -> None:
        """Give the members what is theirs up to now."""
        if self._members and self.names:
            spent = [self._last[name] - self._settled[name] for name in self.names]
            share = np.array(spent, np.float64) / len(self._members)
            for each in self._members:
                each.spend(share)
        self._members = []  # who has ended is not kept
        self._settled = self._last

    def skip(self) -> None:
        """Leave out what was computed since the last step: it was nobody's."""
        self.settle()
        self._last = self._settled = self._counts()
