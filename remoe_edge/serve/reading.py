"""Read an answer piece by piece, in the engine's thread, and tell what happens in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.serve.events import (
    Event,
    Finish,
    ParserEvent,
    Text,
    TokenChoice,
    TokenText,
    ToolBegin,
    ToolEnd,
)

if TYPE_CHECKING:
    from remoe_edge.engine.answer import Answer, TokenLogprob
    from remoe_edge.engine.engine import Engine
    from remoe_edge.serve.conversations import Ask


def answer_events(engine: Engine, answer: Answer, ask: Ask) -> Iterator[Event]:
    """Yield the events of an answer, but for its reasoning, of which `generate` tells by a callback.

    Raises what reading the answer raises.
    """
    parser = None if ask.parser is None else ask.parser()
    tokens = _Tokens(engine, answer)
    called = stopped = False
    with answer:
        for piece in answer:
            found: list[ParserEvent] = [Text(piece)] if parser is None else parser.feed(piece)
            for event in found:
                called = called or isinstance(event, ToolBegin)
                yield Text(event.text, tokens.new()) if isinstance(event, Text) else event
                if ask.one_call and isinstance(event, ToolEnd):
                    stopped = True
                    break
            if stopped:
                break
    if parser is not None and not stopped:
        for event in parser.end():
            called = called or isinstance(event, ToolBegin)
            yield event
    reason = answer.finish_reason or "stop"
    if called and (stopped or reason == "stop"):
        reason = "tool_calls"
    yield Finish(reason, answer.usage, answer.stats, answer.stop_string, tokens.new())


class _Tokens:
    """Give the log probabilities of tokens, each once."""

    def __init__(self, engine: Engine, answer: Answer) -> None:
        self._answer = answer
        self._words = Tokenizer(engine.llama)
        self._n_given = 0

    def new(self) -> tuple[TokenChoice, ...]:
        """Give those since the last call; none where they were not asked for."""
        found = self._answer.logprobs
        if found is None:
            return ()
        new = found[self._n_given :]
        self._n_given = len(found)
        return tuple(map(self._choice, new))

    def _choice(self, found: TokenLogprob) -> TokenChoice:
        top = tuple(TokenText(self._data(token), logprob) for token, logprob in found.top)
        return TokenChoice(self._data(found.token_id), found.logprob, top)

    def _data(self, token: int) -> bytes:
        return self._words.piece(token, special=True)
