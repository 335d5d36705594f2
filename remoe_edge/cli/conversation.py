"""A conversation that forgets its oldest turns when the context is full."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from remoe_edge.engine.answer import Answer
    from remoe_edge.engine.chat_template import Message
    from remoe_edge.engine.engine import Engine

REASONING = "reasoning_content"  # the name that templates know


@dataclass(frozen=True)
class Turn:
    """Hold what was asked and what was answered, after what reasoning."""

    asked: str
    answered: str
    reasoning: str = ""


@dataclass
class Conversation:
    """Hold the turns so far, and ask the engine with as many of them as fit.

    raw: one text that the model continues, without a chat template.
    """

    engine: Engine
    system: str | None = None
    raw: bool = False
    turns: list[Turn] = field(default_factory=list)
    n_notes: int = field(init=False)  # the engine's, those that were said when it was opened

    def __post_init__(self) -> None:
        _, self.n_notes = self.engine.notes_since(0)

    def new_notes(self) -> list[str]:
        """Take what the engine has noted since the last call."""
        notes, self.n_notes = self.engine.notes_since(self.n_notes)
        return notes

    def ask(self, text: str, *, max_tokens: int, **settings: Any) -> tuple[Answer, int]:
        """Return the answer's pieces, to be read once, and how many turns had to be forgotten.

        The turn is kept once `keep` is told of its answer. Raises InputError when even the question
        alone does not fit; then nothing is forgotten.
        """
        if not text or (not self.raw and text.isspace()):
            raise InputError("the prompt is empty")
        # Room for a whole answer, unless that asks for most of the context.
        room = max(1, min(max_tokens, self.engine.n_ctx // 4))
        kept = list(self.turns)
        tokens, how = self._tokens(kept, text)
        while kept and len(tokens) + room > self.engine.n_ctx:
            del kept[0]
            tokens, how = self._tokens(kept, text)
        pieces = self.engine.generate(tokens, max_tokens=max_tokens, **how, **settings)
        forgotten = len(self.turns) - len(kept)
        self.turns = kept
        return pieces, forgotten

    def keep(self, asked: str, answered: str, reasoning: str = "") -> None:
        """Add a turn. Reasoning goes back to the model only where its template has a place for it."""
        self.turns.append(Turn(asked, answered, reasoning))

    def clear(self) -> None:
        """Forget all turns; the system text stays."""
        self.turns.clear()
        self.engine.reset()

    def _tokens(self, turns: list[Turn], text: str) -> tuple[list[int], dict[str, Any]]:
        """Return the prompt, and what `generate` is told of how the answer will be written."""
        if self.raw:
            whole = [self.system or "", *(turn.asked + turn.answered for turn in turns), text]
            return self.engine.tokenize("".join(whole), special=True), {}
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in turns:
            messages.append({"role": "user", "content": turn.asked})
            messages.append(self._answer(turn))
        prompt, stop, bos = self.engine.render([*messages, {"role": "user", "content": text}])
        tokens = self.engine.tokenize(prompt, special=True, bos=bos)
        return tokens, {"stop": stop, "form": prompt.form}

    def _answer(self, turn: Turn) -> Message:
        answer = {"role": "assistant", "content": turn.answered}
        if turn.reasoning and REASONING in (self.engine.chat_template or ""):
            answer[REASONING] = turn.reasoning  # the template drops it where the model wants none
        return answer
