"""Routing for simulated requests: cut from recordings, or made up from topics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Routed = npt.NDArray[np.int64]  # [layer, token, k]


def pieces(routed: npt.NDArray[np.integer], n_tokens: int) -> list[Routed]:
    """Cut a recording [layer, token, k] into requests of n tokens; what is left over is not used."""
    return [
        np.asarray(routed[:, at : at + n_tokens], np.int64)
        for at in range(0, routed.shape[1] - n_tokens + 1, n_tokens)
    ]


class Topics:
    """Make up routing: each topic prefers other experts, and a token often repeats the one before.

    power: how uneven a topic's use is (0: even). repeat: the chance that a token takes the last one's
    experts. mixture: the part of the use that all topics share.
    """

    def __init__(
        self, n_layers: int, n_experts: int, top_k: int, *, n_topics: int = 8, power: float = 1.0,
        repeat: float = 0.3, mixture: float = 0.5, seed: int = 0,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.top_k, self.repeat = top_k, repeat
        weights = np.arange(1, n_experts + 1) ** -power
        weights /= weights.sum()

        def drawn() -> npt.NDArray[np.float64]:
            return np.stack([rng.permutation(weights) for _ in range(n_layers)])

        shared = drawn()
        self.shares = np.stack(
            [mixture * shared + (1 - mixture) * drawn() for _ in range(n_topics)]
        )  # [topic, layer, expert]

    def draw(self, topic: int, n_tokens: int, rng: np.random.Generator) -> Routed:
        """Draw a request's routing [layer, token, k], each token's experts without repetition."""
        log_shares = np.log(self.shares[topic])
        n_layers, n_experts = log_shares.shape
        found = np.empty((n_layers, n_tokens, self.top_k), np.int64)
        repeats = rng.random(n_tokens) < self.repeat
        for token in range(n_tokens):
            if token and repeats[token]:
                found[:, token] = found[:, token - 1]
                continue
            # The k largest of shares with Gumbel noise are a draw without repetition.
            noisy = log_shares + rng.gumbel(size=(n_layers, n_experts))
            found[:, token] = np.argpartition(-noisy, self.top_k - 1, axis=1)[:, : self.top_k]
        return found
