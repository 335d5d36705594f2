"""What HTTP may ask of the engine. Who schedules answers stands behind this, and may be replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from remoe_edge.errors import RemoeError
from remoe_edge.serve.events import Event

if TYPE_CHECKING:
    from remoe_edge.engine.channels import AnswerForm
    from remoe_edge.engine.engine import Engine
    from remoe_edge.serve.tools.format import ToolParser


class NotNow(RemoeError):
    """The request may be made again later. retry_after_s: when."""

    def __init__(self, why: str, retry_after_s: int) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class QueueFull(NotNow):
    """As many requests wait as may."""


class NotReady(NotNow):
    """The model is being loaded, has failed to load, or is being closed."""


@dataclass(frozen=True)
class Ask:
    """Hold one answer to be made: what `Engine.generate` is to be given, and how to read it.

    sampling: keywords of `Engine.generate`. parser: makes a reader of tool calls. one_call: the answer
    ends after its first call. goes_on: the prompt holds an answer that was given before. embeds: the
    tokens are to become a vector, and nothing is written.
    """

    tokens: Sequence[int]
    sampling: dict[str, Any]
    form: AnswerForm | None = None
    parser: Callable[[], ToolParser] | None = None
    one_call: bool = False
    goes_on: bool = False
    embeds: bool = False


@dataclass(frozen=True)
class Slot:
    """Tell what a place for an answer is doing."""

    id: int
    busy: bool
    n_prompt: int = 0
    n_generated: int = 0


@dataclass(frozen=True)
class Load:
    """Tell how busy it is."""

    queued: int
    queue_limit: int
    running: int
    slots: tuple[Slot, ...] = field(default=())


class Stream(Protocol):
    """The events of one request, for one reader in one event loop."""

    def __aiter__(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Give (which of the request's answers, event), all that are there at once and at least one.

        Ends after all answers have, or after `Failed`, which is the last.

        Waiting for the next ones may be cancelled and begun again: no event is lost.
        """
        ...

    def cancel(self) -> None:
        """Let the engine go on to others; nothing follows that anybody reads. Idempotent."""
        ...


class Conversations(Protocol):
    """Answer many requests with one model. Safe to use from several threads."""

    @property
    def state(self) -> str:
        """Say "loading", "ready", "failed" or "closing"."""
        ...

    @property
    def failure(self) -> Exception | None:
        """Tell what has failed, None while nothing has."""
        ...

    @property
    def engine(self) -> Engine:
        """Give the engine, to render and tokenize with. Raises NotReady."""
        ...

    @property
    def load(self) -> Load:
        """Tell how busy it is."""
        ...

    def submit(self, asks: Sequence[Ask]) -> Stream:
        """Have a request answered; called in the event loop that reads it. Raises QueueFull, NotReady."""
        ...

    def close(self) -> None:
        """Cancel everything and free the engine; returns when that is done. Idempotent."""
        ...
