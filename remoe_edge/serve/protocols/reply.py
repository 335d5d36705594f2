"""What every protocol keeps of an answer while it comes, and what its reply has to be able to do."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from remoe_edge.machine import memory
from remoe_edge.serve.events import (
    Event,
    Finish,
    Reasoning,
    Text,
    TokenChoice,
    ToolArguments,
    ToolBegin,
)

# The name of a server-sent event, None for one without, and its data.
Frame = tuple[str | None, dict[str, Any] | str]


@dataclass
class Call:
    """Hold a tool call so far."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Gathered:
    """Hold one answer so far."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: list[TokenChoice] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, event: Event) -> None:
        """Take in what happened."""
        if isinstance(event, Text):
            self.text += event.text
            self.tokens += event.tokens
        elif isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, ToolBegin):
            self.calls.append(Call(event.id, event.name))
        elif isinstance(event, ToolArguments):
            self.calls[-1].arguments += event.text
        elif isinstance(event, Finish):
            self.finish = event
            self.tokens += event.rest


class Reply(Protocol):
    """Write the events of one request as its protocol has them: as they come, or whole."""

    def begin(self) -> Iterable[Frame]:
        """Write what comes before the first event of a stream."""
        ...

    def take(self, index: int, event: Event) -> Iterable[Frame]:
        """Take in an event; return what of a stream it makes."""
        ...

    def end(self) -> Iterable[Frame]:
        """Write what comes after the last."""
        ...

    def failed(self, status: int, body: dict[str, Any]) -> Iterable[Frame]:
        """Write that nothing more will come, and why."""
        ...

    def whole(self) -> dict[str, Any]:
        """Write the whole, after the last event."""
        ...


def new_id(prefix: str) -> str:
    """Make an id."""
    return f"{prefix}{secrets.token_hex(12)}"


def now() -> int:
    """Give the time in seconds."""
    return int(time.time())


def usage(gathered: Iterable[Gathered]) -> tuple[int, int]:
    """Count the tokens that went in and came out; several answers to one prompt count it once."""
    finished = [each.finish for each in gathered if each.finish is not None]
    n_in = finished[0].usage.prompt_tokens if finished else 0
    return n_in, sum(each.usage.completion_tokens for each in finished)


def costs(finish: Finish) -> dict[str, Any]:
    """Tell what an answer cost, which no protocol has a place for. Times in ms, sizes in bytes."""
    stats = finish.stats
    used = stats.decode_hits + stats.decode_misses
    n = len(stats.token_ms)
    tpot = stats.tpot_ms()["mean"]
    return {
        "tokens_per_second": round(1000 / tpot, 3) if tpot else None,
        "ttft_ms": None if math.isnan(stats.ttft_ms) else round(stats.ttft_ms, 3),
        "hit_rate": round(stats.decode_hits / used, 4) if used else None,
        "bytes_per_token": round(stats.decode_bytes / n) if n and used else None,
        "stall_ms": round(stats.stall_ms, 3),
        "peak_rss_bytes": memory.peak_rss_bytes(),
    }
