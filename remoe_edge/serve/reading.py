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
    from remoe_edge.engine.answer import Answer, Outcome, TokenLogprob
    from remoe_edge.engine.engine import Engine
    from remoe_edge.serve.conversations import Ask


def answer_events(engine: Engine, answer: Answer, ask: Ask) -> Iterator[Event]:
    """Yield the events of an answer, but for its reasoning, of which `generate` tells by a callback.

    Raises what reading the answer raises.
    """
    reading = Reading(engine, answer, ask)
    with answer:
        for piece in answer:
            yield from reading.feed(piece)
            if reading.stopped:
                break
    yield from reading.end()


class Reading:
    """Make events of an answer's pieces. stopped: no piece is wanted after those given."""

    def __init__(self, engine: Engine, answer: Outcome, ask: Ask) -> None:
        self._answer, self._one_call = answer, ask.one_call
        self._parser = None if ask.parser is None else ask.parser()
        self._tokens = _Tokens(engine, answer)
        self._called = False
        self.stopped = False

    def feed(self, piece: str) -> Iterator[Event]:
        """Yield what a piece tells."""
        parser = self._parser
        found: list[ParserEvent] = [Text(piece)] if parser is None else parser.feed(piece)
        for event in found:
            if self.stopped:
                return
            self.stopped = self._one_call and isinstance(event, ToolEnd)
            yield self._told(event)

    def end(self) -> Iterator[Event]:
        """Yield what follows the last piece, how it ended last."""
        if self._parser is not None and not self.stopped:
            for event in self._parser.end():
                self._called = self._called or isinstance(event, ToolBegin)
                yield event
        answer = self._answer
        reason = answer.finish_reason or "stop"
        if self._called and (self.stopped or reason == "stop"):
            reason = "tool_calls"
        yield Finish(reason, answer.usage, answer.stats, answer.stop_string, self._tokens.new())

    def _told(self, event: ParserEvent) -> Event:
        self._called = self._called or isinstance(event, ToolBegin)
        return Text(event.text, self._tokens.new()) if isinstance(event, Text) else event


class _Tokens:
    """Give the log probabilities of tokens, each once."""

    def __init__(self, engine: Engine, answer: Outcome) -> None:
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
