"""Warm up, stay, decay: the learning rate as a function of the step alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Schedule:
    """Linear warm-up, constant, then 1 - sqrt down to `floor` at `total` steps."""

    warmup: int
    total: int
    decay_share: float = 0.35
    floor: float = 0.02

    def scale(self, step: int) -> float:
        """Return the factor for the learning rate at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = max(self.warmup, int(self.total * (1 - self.decay_share)))
        if step < start:
            return 1.0
        done = min(1.0, (step - start) / max(1, self.total - start))
        return self.floor + (1 - self.floor) * (1 - done**0.5)

    def in_decay(self, step: int) -> bool:
        """Tell whether the decay has begun, after which `total` must not move."""
        return step >= max(self.warmup, int(self.total * (1 - self.decay_share)))
