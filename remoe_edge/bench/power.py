"""Energy of a run, where there is a sensor."""

from __future__ import annotations

from typing import Any, Protocol


class PowerMeter(Protocol):
    """Measure one run after another."""

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self) -> dict[str, Any]:
        """End, and give the run's record: at least `energy_joules`, None without a sensor."""
        ...


class NoMeter:
    """Measure nothing."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> dict[str, Any]:
        """Know nothing."""
        return {"energy_joules": None}
