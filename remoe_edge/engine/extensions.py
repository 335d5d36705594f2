"""What features may hand to an engine: the engine knows these protocols, and none of the features.

Most of them keep a file. They are opened by the engine, once it knows the model and that its experts
are streamed, so that a wrong argument makes and reads no file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.observers import Observer

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel
    from remoe_edge.engine.settings import EngineSettings

Opened = TypeVar("Opened", covariant=True)


class FeatureFile(Protocol[Opened]):
    """A feature's file, not opened yet."""

    @property
    def path(self) -> Path:
        """Say where it lies."""
        ...

    def open(self, model: Path, native: StreamedModel) -> Opened:
        """Open it for a model that has been read but not loaded. Raises RemoeError."""
        ...


class Profile(Protocol):
    """What is known of a model from earlier runs: `remoe_edge.profile` keeps one."""

    @property
    def data(self) -> bytes | None:
        """Give the fitted profile that the policy takes; None while there is none."""
        ...

    def hot(self) -> npt.NDArray[np.int64]:
        """List experts (layer * n_experts + expert), those worth reading first at the beginning."""
        ...

    def save(self, uses: npt.NDArray[Any], n_steps: float, n_layers: int, n_experts: int) -> None:
        """Keep a run's uses, [n_layers * n_experts]."""
        ...


class PromptMemory(Protocol):
    """What past prompts activated: `remoe_edge.predict` keeps it."""

    def beside(
        self, model: StreamedModel, tokens: Sequence[int]
    ) -> contextlib.AbstractContextManager[None]:
        """Tell the policy what to expect of a prompt while it is answered, and learn from it."""
        ...

    def shares(self, tokens: Sequence[int]) -> npt.NDArray[np.floating] | None:
        """Predict a prompt's shares of experts, [layers, experts]; None without a past."""
        ...

    def save(self) -> None:
        """Keep what was learnt."""
        ...


class Functions(Protocol):
    """Workers that come and go while the engine runs: `remoe_edge.deploy` leases them."""

    def open(
        self, native: StreamedModel, beside: Sequence[str], note: Callable[[str], None]
    ) -> None:
        """Begin, for a model that is loaded and takes peers.

        beside: addresses of peers that are there in any case. `note` takes a line for the user.
        """
        ...

    def beside(
        self, shares: npt.NDArray[np.floating] | None
    ) -> contextlib.AbstractContextManager[None]:
        """Wake what a prompt will ask, by its predicted shares of experts, while it is answered."""
        ...

    def stats(self) -> list[dict[str, Any]]:
        """Tell of each function."""
        ...

    def close(self) -> None:
        """Give all of them back."""
        ...


class TraceRecording(Protocol):
    """A trace that is being recorded: `remoe_edge.routing` makes one."""

    def close(self) -> None:
        """End the file, which takes its name now."""
        ...


class PlanKeeper(Observer, Protocol):
    """Who keeps a plan while it runs: told of every step, asked for slots."""

    def wanted(self, n_slots: int, room: bool) -> int:
        """Take how many slots there are and whether memory has room for more; say how many at most."""
        ...

    def says_to(self, note: Callable[[str], None]) -> None:
        """Take what notes, once, that the promise is not kept and why."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for stats."""
        ...


class PlannedBudget(Protocol):
    """A budget that was found for a time per token."""

    @property
    def cache_bytes(self) -> int:
        """Give the bytes for experts, to begin with."""
        ...

    @property
    def keeper(self) -> PlanKeeper | None:
        """Give who keeps the plan while it runs; None: the budget stays as it is."""
        ...

    @property
    def why(self) -> str:
        """Say in a line how it was found."""
        ...


# Finds a budget for `settings.cache`, "plan:250ms", of the model at a path; n_ctx is settled by then.
Planner = Callable[[Path, "EngineSettings"], PlannedBudget]
# Starts observers, once the settings are known to be right and before anything is loaded. It is given
# the function that takes a note for the user.
StartObservers = Callable[[Callable[[str], None]], Sequence[Observer]]
