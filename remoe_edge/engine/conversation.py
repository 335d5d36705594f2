"""One of several answers that an engine makes a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.answer import Outcome, Produced
from remoe_edge.engine.counters import Counts
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.places import Place
from remoe_edge.engine.request import Request
from remoe_edge.engine.writer import Writer
from remoe_edge.native import llama_cpp


class Listener(Protocol):
    """Hear of an answer, in the thread that computes. What it raises ends that answer."""

    def piece(self, text: str) -> None:
        """Take a piece of the answer."""

    def ended(self) -> None:
        """The answer has ended; what came of it is known."""

    def failed(self, error: Exception) -> None:
        """The answer could not be made, or not to its end."""


class Conversation(Outcome):
    """Hold an answer while it is made; for its batch alone, but for `cancel` and what `Outcome` tells."""

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        place: Place,
        listener: Listener,
        *,
        on_reasoning: Callable[[str], object] | None,
        now_s: float,
    ) -> None:
        self._produced = Produced.of(request, on_reasoning)
        super().__init__(self._produced)
        self.request, self.place, self.listener = request, place, listener
        self.id = place.id
        self._produced.n_reused = len(place.tokens)
        self.tokens = list(request.tokens)  # with those that were sampled
        self.begun, self.prompts = False, True
        self.since_s = self.came_s = now_s
        self._writer = Writer(loaded, request, self._produced)
        self._sampler = _sampler(loaded.llama, request)
        self._wants_row = self._produced.logprobs is not None
        self._spent: npt.NDArray[np.float64] = np.zeros(0)
        self._first: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def n_reused(self) -> int:
        """Count the tokens of the prompt that need not be computed."""
        return self._produced.n_reused

    # --- from whatever thread ---

    def cancel(self) -> None:
        """Let no token follow; a step that is this answer's alone is stopped at its next layer."""
        self._produced.cancel()

    @property
    def cancelled(self) -> bool:
        """Say whether no token is to follow."""
        return self._produced.cancelled

    def runs_with(self, interrupt: Callable[[], None] | None) -> None:
        """Take what stops the step that is computed now, if it is this answer's alone."""
        self._produced.runs_with(interrupt)

    # --- for the batch ---

    @property
    def over(self) -> bool:
        """Say whether the answer has ended."""
        return bool(self.stats.stop)

    def pending(self, n_most: int) -> list[int]:
        """Give the next tokens to be computed."""
        begin = len(self.place.tokens)
        return self.tokens[begin : begin + n_most]

    def computed(self, tokens: list[int], piece: int) -> bool:
        """Note that tokens were computed; return whether one is to be sampled now."""
        self.begun = True
        self.place.took(tokens, piece)
        return len(self.place.tokens) == len(self.tokens)

    def lost(self) -> None:
        """Note that the place may have lost tokens, which are to be computed again."""
        self.prompts = self.prompts or len(self.tokens) - len(self.place.tokens) > 1

    def sample(self, context: Any, index: int, row: npt.NDArray[np.float32], now_s: float) -> None:
        """Sample a token from a row of logits, and tell the listener of what it makes certain."""
        token = int(self._sampler.sample(context, index))
        stats = self.stats
        if stats.n_generated == 0:
            stats.ttft_ms = (now_s - self.came_s) * 1000
            self._first = self._spent.copy()
        else:
            stats.token_ms.append((now_s - self.since_s) * 1000)
        self.prompts, self.since_s = False, now_s
        self._writer.record(token, row if self._wants_row else None)
        self.tokens.append(token)
        given = self._writer.take(token, len(self.place.tokens))
        if given:
            self.listener.piece(given)

    def rest(self) -> None:
        """Tell the listener of the text that was held back."""
        given = self._writer.rest()
        if given:
            self.listener.piece(given)

    def spend(self, share: npt.NDArray[np.float64]) -> None:
        """Add this answer's share of what a step cost, in the order of the core's counts."""
        self._spent = share if not len(self._spent) else self._spent + share

    def prompt_cost(self, names: list[str]) -> dict[str, Any]:
        """Give what the prompt has cost so far, as fields of `Counts`."""
        return Counts.between(dict.fromkeys(names, 0), self._counts(self._spent, names))

    def account(self, names: list[str]) -> None:
        """Write what the answer has cost into its stats."""
        if len(names):
            zero = dict.fromkeys(names, 0)
            self.stats.count(
                zero, self._counts(self._first, names), self._counts(self._spent, names)
            )

    def free(self) -> None:
        """Free the sampler."""
        self._sampler.close()

    @staticmethod
    def _counts(spent: npt.NDArray[np.float64], names: list[str]) -> dict[str, int]:
        if not len(spent):
            return dict.fromkeys(names, 0)
        return dict(zip(names, map(int, spent.round()), strict=True))


def _sampler(llama: Any, request: Request) -> Any:
    """Make the chain of samplers that `Llama.generate` makes."""
    llama.set_seed(llama_cpp.LLAMA_DEFAULT_SEED if request.seed is None else request.seed)
    return llama._init_sampler(**request.sampling)
