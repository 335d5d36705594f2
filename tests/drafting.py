"""What tests of drafts share: a prompt, a whole answer, and guesses that are mostly right."""

from __future__ import annotations

from typing import Any

import pytest

from remoe_edge import Engine
from remoe_edge.engine import drafts
from remoe_edge.engine.drafts import PromptLookup

TEXT = [5, 9, 40, 7, 12, 5, 9, 40, 7, 33, 21, 5, 9, 40]
N_ALL = 1 << 20  # log probabilities of every token: equal ones are equal logits


def answered(engine: Engine, prompt: list[int] | None = None, **settings: Any) -> Any:
    """Give an answer that no end token ends, with the log probabilities of all tokens."""
    ends = [token for token in range(engine.llama.n_vocab()) if engine.is_end(token)]
    bias = dict.fromkeys(ends, -100) | settings.pop("logit_bias", {})
    settings = {"max_tokens": 40, "logprobs": N_ALL, "logit_bias": bias} | settings
    answer = engine.generate(prompt or TEXT, bos=False, **settings)
    answer.read()
    return answer


def guess(
    monkeypatch: pytest.MonkeyPatch,
    known: list[int],
    n_prompt: int = len(TEXT),
    wrong_every: int = 7,
) -> None:
    """Have an answer that is known guessed, wrong now and then: random models hardly repeat."""
    wrong = dict.fromkeys(range(5, len(known), wrong_every), 1)

    class Oracle(PromptLookup):
        def guess(self, n_most: int) -> list[int]:
            at = len(self._tokens) - n_prompt
            return [known[i] ^ wrong.get(i, 0) for i in range(at, min(at + n_most, len(known)))]

    monkeypatch.setattr(drafts, "PromptLookup", Oracle)
