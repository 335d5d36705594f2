"""Hold every domain's perplexity within a budget while the routers learn to reuse experts.

The run minimises its locality terms subject to CE_d - CE_base_d <= log(1 + budget) for each domain
d of the training text: a constrained problem, solved by dual ascent. Every domain's cross entropy
has a multiplier of its own, never below the run's own `ce` weight; while the domain's excess over
the base model, on the same windows, is above the budget, its multiplier grows, and below it shrinks.
So text whose reuse is expensive keeps its routing, and text whose reuse is cheap pays for the rest.

The excess is that of the averaged routers, which are the run's result: a single step's routers
lose more to the noise of their batches, which no multiplier takes away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MEASURE_EVERY = 4  # steps: two forward passes each time
# One window's excess is noise of several times the budget: a mean over about so many measurements.
_MEMORY = 10
# Of a multiplier's logarithm at a measurement, at an excess of twice the budget or more. Averaged
# routers answer a changed weight in some hundred steps: faster multipliers swing past the limit.
_RATE = 0.02
_MOST = 16.0  # times the floor


class PerplexityBudget:
    """The multipliers of the domains' cross entropies; all state is in `state`."""

    def __init__(self, n_domains: int, budget: float, floor: float) -> None:
        """`budget` is a share of perplexity (0.01: one percent), `floor` the least multiplier."""
        self._limit = math.log1p(budget)
        self._floor = floor
        self._most = _MOST * floor
        self.excess = torch.zeros(n_domains, dtype=torch.float64)
        self.multipliers = torch.full((n_domains,), floor, dtype=torch.float64)

    def weigh(self, ce: Tensor, domains: Sequence[int]) -> Tensor:
        """Return mean_rows multiplier[domain] * CE of [rows, tokens]; `domains`: each row's."""
        return (ce.mean(-1) * self.multipliers[list(domains)].to(ce)).mean()

    def observe(self, ce: Tensor, base: Tensor, domains: Sequence[int]) -> None:
        """Move the multipliers: CE [rows, tokens] of the routers so far, and the base model's."""
        over = (ce.mean(-1) - base.mean(-1)).double().cpu()
        rows = torch.tensor(domains)
        for domain in set(domains):
            now = over[rows == domain].mean()
            self.excess[domain] += (now - self.excess[domain]) / _MEMORY
        pressure = ((self.excess - self._limit) / self._limit).clamp(-1, 1)
        moved = self.multipliers * torch.exp(_RATE * pressure)
        self.multipliers = moved.clamp(self._floor, self._most)

    @property
    def state(self) -> list[list[float]]:
        """Give what a resumed run needs; plain numbers."""
        return [self.excess.tolist(), self.multipliers.tolist()]

    @state.setter
    def state(self, saved: list[list[float]]) -> None:
        self.excess, self.multipliers = (torch.tensor(s, dtype=torch.float64) for s in saved)
