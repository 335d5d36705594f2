"""What happens while an answer is made, in the order in which a client hears of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.answer import Usage
from remoe_edge.engine.stats import AnswerStats


@dataclass(frozen=True)
class TokenText:
    """Hold a token's bytes and the natural logarithm of its probability."""

    data: bytes
    logprob: float


@dataclass(frozen=True)
class TokenChoice(TokenText):
    """Hold a token that was chosen, and the likeliest in its place."""

    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True)
class Text:
    """A piece of the answer. tokens: those since the last piece, where log probabilities are wanted."""

    text: str
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class Reasoning:
    """A piece of the reasoning before the answer."""

    text: str


@dataclass(frozen=True)
class ToolBegin:
    """The model calls a tool; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolArguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolEnd:
    """A call is complete."""

    index: int


@dataclass(frozen=True)
class Finish:
    """The answer has ended.

    reason: "stop", "length", "tool_calls" or "cancelled". stop_string: the one that ended it. rest:
    log probabilities of tokens that made no text.
    """

    reason: str
    usage: Usage
    stats: AnswerStats
    stop_string: str | None = None
    rest: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class Vector:
    """A text has become a vector, as the model gives it. Nothing else becomes of its ask."""

    values: npt.NDArray[np.float32]
    n_tokens: int


@dataclass(frozen=True)
class Failed:
    """The answer could not be made; nothing of this request follows."""

    error: Exception


ParserEvent = Text | Reasoning | ToolBegin | ToolArguments | ToolEnd
Event = ParserEvent | Vector | Finish | Failed
