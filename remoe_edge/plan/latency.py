"""The time of a token and of a prompt, from computing, reads and misses.

One layer's expert FFN, top-k experts of which m are missing, follows what the engine does: all reads
start at once, residents are computed meanwhile, and each missing expert when it has come. With R(j)
the time until j experts are there and p the time to compute one,

    t(0) = the whole FFN in one piece
    t(m) = max(k·p, R(1) + m·p, R(m) + p)

that is: bound by computing, by computing behind the first arrival, or by storage. Attention and the
rest of a layer do not overlap with these reads. An engine that reads ahead does better where it
guesses right; only for prompts, whose layers stream ahead whole, is that reckoned with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from remoe_edge.plan.compute import ComputeModel
from remoe_edge.plan.misses import Chances
from remoe_edge.plan.reads import ReadModel
from remoe_edge.plan.sizes import LayerSizes, ModelSizes

_SLOWEST, _FASTEST = 16.0, 1 / 4  # how far the engine's reads may lie from the probe's


@dataclass(frozen=True)
class Machine:
    """Join a model with what this machine does in a second."""

    sizes: ModelSizes
    compute: ComputeModel
    reads: ReadModel

    @cached_property
    def _event_ms(self) -> Chances:
        """Tabulate t(m), [layers, top_k + 1]."""
        kinds = {layer: self._row(layer) for layer in set(self.sizes.layers)}
        return np.asarray([kinds[layer] for layer in self.sizes.layers])

    def _row(self, layer: LayerSizes) -> list[float]:
        k, p = self.sizes.top_k, self.compute.pair_ms

        def come(n: int) -> float:
            return 1000 * self.reads.seconds(n * layer.reads, layer.block_bytes)

        waiting = [max(k * p, come(1) + m * p, come(m) + p) for m in range(1, k + 1)]
        return [self.compute.whole_ms, *waiting]

    def tpot_ms(self, chances: Chances) -> float:
        """Predict the time of one output token."""
        return self.compute.dense_ms + self.compute.sample_ms + self.ffn_ms(chances)

    def ffn_ms(self, chances: Chances) -> float:
        """Predict the expert FFNs of one token, waiting included."""
        return float((chances * self._event_ms).sum())

    def layer_ms(self, chances: Chances) -> Chances:
        """Predict each layer's expert FFN, [layers]."""
        return np.asarray((chances * self._event_ms).sum(1))

    @property
    def resident_ms(self) -> float:
        """Give the time of a token that misses nothing."""
        still = self.compute.dense_ms + self.compute.sample_ms
        return still + self.sizes.n_layers * self.compute.whole_ms

    def bytes_per_token(self, chances: Chances) -> float:
        """Give the bytes that one token reads."""
        misses = chances @ np.arange(chances.shape[1])
        return float(misses @ [layer.expert_bytes for layer in self.sizes.layers])

    def floor_ms(self, chances: Chances) -> float:
        """Bound the time from below: everything overlaps, and storage never rests."""
        return max(self.resident_ms, 1000 * self.bytes_per_token(chances) / self.bandwidth)

    @property
    def bandwidth(self) -> float:
        """Give bytes/s of expert reads with the queue full, as the engine gets them."""
        layer = self.sizes.layers[0]
        rate = self.reads.bytes_per_s(layer.block_bytes, self.reads.depth)
        return rate / self.reads.scale

    def ttft_ms(self, n_prompt: int, resident: float, touched: Callable[[int], float]) -> float:
        """Predict a prompt's time to its first token when a share of its experts is resident.

        `touched(n)`: experts of a layer that n tokens use.
        """
        compute, n_layers = self.compute, self.sizes.n_layers
        dense = compute.prefill_dense_base_ms + n_prompt * compute.prefill_dense_each_ms
        ffn = (compute.prefill_ffn_base_ms + n_prompt * compute.prefill_ffn_each_ms) / n_layers
        missing = (1 - resident) * touched(n_prompt)
        last = ffn / max(1.0, touched(n_prompt)) if missing > 0 else 0.0
        reads = [
            1000 * self.reads.seconds(missing * layer.reads, layer.block_bytes)
            for layer in self.sizes.layers
        ]
        if compute.prefetches:
            # Only the first layer's reads have nothing to hide behind.
            busy = max(dense + n_layers * ffn + reads[0], sum(reads) + last)
        else:
            busy = dense + sum(max(ffn, each + last) for each in reads)
        return busy + compute.sample_ms

    def calibrated(self) -> Machine:
        """Stretch the reads until the tokens that the compute probe saw waiting come out right.

        The probe says what idle storage gives; the engine's reads share the machine with its
        computing. Nothing changes where those tokens are explained within 2 %, or saw no misses.
        """
        k, n = self.sizes.top_k, self.sizes.n_layers
        compute = self.compute
        if compute.n_cold == 0 or compute.cold_misses < 1:
            return self
        share = min(1.0, compute.cold_misses / (k * n))
        row = [math.comb(k, m) * share**m * (1 - share) ** (k - m) for m in range(k + 1)]
        chances = np.tile(np.asarray(row), (n, 1))

        def at(scale: float) -> Machine:
            return replace(self, reads=replace(self.reads, scale=scale))

        wanted = compute.cold_ffn_ms
        if abs(at(1.0).ffn_ms(chances) / wanted - 1) < 0.02:
            return at(1.0)
        low, high = math.log(_FASTEST), math.log(_SLOWEST)
        for _ in range(40):
            middle = (low + high) / 2
            if at(math.exp(middle)).ffn_ms(chances) < wanted:
                low = middle
            else:
                high = middle
        # Where computing hides all reads, these tokens say nothing of storage.
        if at(math.exp(low)).ffn_ms(chances) > 1.02 * wanted:
            return at(1.0)
        return at(math.exp((low + high) / 2))


def touched_by_chance(n_experts: int, top_k: int) -> Callable[[int], float]:
    """Count the experts of a layer that n tokens use if every expert is as likely as another."""
    return lambda n: n_experts * (1 - (1 - top_k / n_experts) ** n)


def touched_at_worst(n_experts: int, top_k: int) -> Callable[[int], float]:
    """Count the experts of a layer that n tokens can use at most."""
    return lambda n: float(min(n_experts, n * top_k))
