"""The teacher: a small recurrent network over routing, which corrects the policy's own scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class State(NamedTuple):
    """Hold what a session leaves to its next tokens."""

    memory: Tensor
    total: Tensor  # of contexts
    tokens: int


class Teacher(nn.Module):
    """Say how likely each expert of each layer is to be used soon, after each event.

    It knows what the policy scored, what every layer chose for the tokens before (a GRU over tokens),
    and what this layer and those before it chose for this token (sums over layers). Contexts count by
    how they differ from their mean of the session so far: what a text uses all the time says nothing
    of another text.
    """

    def __init__(self, layers: int, experts: int, inputs: int, width: int, dropout: float) -> None:
        super().__init__()

        def table(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(layers, rows, columns) * 0.02)

        self.before, self.above, self.own = (table(inputs, width) for _ in range(3))
        self.over_tokens = nn.GRU(width, width, batch_first=True)
        self.layer = nn.Parameter(torch.zeros(layers, width))
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width),
            nn.Dropout(dropout),
        )  # fmt: skip
        self.out = nn.Parameter(torch.zeros(layers, width, experts))

    def forward(self, chosen: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Take [session, token, layer, input]; give what to add to logits, and the state."""
        sessions, tokens = chosen.shape[:2]

        def through(weights: Tensor, rows: Tensor = chosen) -> Tensor:
            by_layer = rows.flatten(0, 1).transpose(0, 1)
            return torch.bmm(by_layer, weights).transpose(0, 1).unflatten(0, (sessions, tokens))

        if state is None:
            layers, width = self.layer.shape
            state = State(
                chosen.new_zeros(1, sessions, width), chosen.new_zeros(1, layers, width), 0
            )
        seen, last = self.over_tokens(through(self.before).sum(2), state.memory)
        past = torch.cat([state.memory.transpose(0, 1), seen[:, :-1]], 1)
        context = self.layer + past[:, :, None] + through(self.above).cumsum(2) + through(self.own)
        mixed = self.mix(context)
        total = mixed.detach().cumsum(1) + state.total[:, None]
        counts = torch.arange(1, tokens + 1)[:, None, None] + state.tokens
        correction = through(self.out, mixed - total / counts)
        return correction, State(last.detach(), total[:, -1], state.tokens + tokens)
