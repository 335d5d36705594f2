"""What a bench is told to do, apart from the model and the arms."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from remoe_edge.bench.box import Limits
from remoe_edge.errors import InputError

READ_AHEAD_KIB = 128  # what Linux sets by default, Jetsons too; stock's best where memory is short


@dataclass(frozen=True)
class Settings:
    """Hold what all arms share.

    tokens: timed ones of every prompt, after `warm` that are not. read_ahead_kib: None leaves it.
    """

    rounds: int = 3
    tokens: int = 64
    warm: int = 8
    n_ctx: int = 0
    n_batch: int = 512
    n_ubatch: int = 512
    gpu_layers: int = 0  # stock's experts stay on the processor, as the engine's do
    limits: Limits = field(default_factory=Limits)
    read_ahead_kib: int | None = READ_AHEAD_KIB
    probe_seconds: float = 1.0
    idle_seconds: float = 3.0
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.tokens < 1 or self.warm < 0:
            raise InputError("a bench has at least a round, a token, and no fewer than 0 warm ones")

    def as_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)
