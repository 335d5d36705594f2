"""One setting of the means by which a model does without experts (engine/lossy.py)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from remoe_edge.engine.lossy import BY_RESIDENTS


@dataclass(frozen=True, order=True)
class Setting:
    """Hold shares below 1, each off at 0; all at 0 is without loss."""

    swap_near: float = 0.0
    skip_cold: float = 0.0
    skip_small: float = 0.0
    coarse_below: float = 0.0

    @property
    def on(self) -> dict[str, float]:
        """Give the means that are on."""
        return {name: value for name, value in asdict(self).items() if value > 0}

    @property
    def reproducible(self) -> bool:
        """Say whether what it chooses is the same whatever the cache holds."""
        return self.on.keys().isdisjoint(BY_RESIDENTS)

    @property
    def means(self) -> str:
        """Name the means: points of one curve have the same."""
        return " + ".join(self.on) or "lossless"

    def __str__(self) -> str:
        """Write it as the command line does."""
        return (
            " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in self.on.items())
            or "lossless"
        )
