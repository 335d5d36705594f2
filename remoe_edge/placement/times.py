"""The times of a request under a placement: TTFT and TPOT as Remoe reckons them, local beside remote.

A layer takes as long as the slower of its local experts and its functions, which work side by side:

    prompt   max(Σ local rows · r, round trips + transfer + makespan(z) · T(y))
    answer   Σ_m P(m)·max((K − m)·e, [m > 0]·(round trip + transfer + rows(m)/z · T(y)))

P(m) is the chance that m of a token's K choices are remote, each choice by itself (binomial); rows(m)
of them go to the busiest of the layer's functions. The mean of the slower side is more than the slower
of two means, so that the sum over m matters. All experts are resident where they are placed; waiting
for busy or cold functions is the simulator's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from remoe_edge.placement.activation import Floats
from remoe_edge.placement.functions import Group, Load
from remoe_edge.placement.request import Request
from remoe_edge.placement.schedule import longest_first
from remoe_edge.placement.utility import Mask


@dataclass(frozen=True)
class Times:
    """Hold the predictions, in milliseconds."""

    ttft_ms: float
    tpot_ms: float

    def request_ms(self, n_answer: int) -> float:
        """Give the time of a whole answer; its first token comes with the prompt."""
        return self.ttft_ms + (n_answer - 1) * self.tpot_ms


@dataclass(frozen=True)
class LayerLoad:
    """Hold a layer's local computing in milliseconds, of the prompt and of a token, and bytes sent.

    remote[m]: the chance that m of a token's choices are remote.
    """

    prompt_local_ms: float
    token_local_ms: float
    prompt_sent: float
    token_sent: float  # of a token that calls
    remote: tuple[float, ...]

    @property
    def chance(self) -> float:
        """Give the chance that a token calls any function of the layer."""
        return 1 - self.remote[0]


@lru_cache(maxsize=4096)
def busiest(n_rows: int, n_functions: int) -> float:
    """Give the mean of the most rows that one of n equally likely functions gets."""
    # P(all ≤ most) = n_rows!·[x^n_rows] (Σ_{j ≤ most} x^j/j!)^n_functions ÷ n_functions^n_rows
    mean = 0.0
    for most in range(n_rows):
        one = np.asarray(
            [
                1 / math.factorial(j) / n_functions**j if j <= most else 0.0
                for j in range(n_rows + 1)
            ]
        )
        power, left = np.eye(1, n_rows + 1)[0], n_functions
        while left:
            power = np.convolve(power, one)[: n_rows + 1] if left & 1 else power
            one, left = np.convolve(one, one)[: n_rows + 1], left >> 1
        mean += 1 - float(power[n_rows]) * math.factorial(n_rows)
    return mean


def rounds(prompt_bytes: float, n_replicas: int, payload_bytes: int) -> int:
    """Count the calls of one replica in a row that a prompt's rows take; `prompt_bytes` one way."""
    if payload_bytes <= 0:
        return 1
    return max(1, math.ceil(prompt_bytes / n_replicas / payload_bytes))


class Timing:
    """Predict one request's times for changing sizes and replicas of the same groups."""

    def __init__(
        self, request: Request, shares: Floats, local: Mask, groups: Sequence[Group],
        loads: Sequence[Load], payload_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.request, self.groups, self.loads = request, groups, loads
        self.payload_bytes = payload_bytes
        self._spans: dict[tuple[int, int], float] = {}
        self.layers = [self._layer(i, shares, local) for i in range(request.shape.n_layers)]
        self.by_layer: list[list[int]] = [[] for _ in self.layers]
        for i, group in enumerate(groups):
            self.by_layer[group.layer].append(i)

    def _layer(self, layer: int, shares: Floats, local: Mask) -> LayerLoad:
        shape, speed, workload = self.request.shape, self.request.speed, self.request.workload
        here = float(shares[layer, local[layer]].sum()) * shape.top_k
        mine = [self.loads[i] for i, g in enumerate(self.groups) if g.layer == layer]
        k = shape.top_k
        away = min(1.0, max(0.0, 1 - here / k)) if mine else 0.0
        remote = tuple(math.comb(k, m) * away**m * (1 - away) ** (k - m) for m in range(k + 1))
        chance = 1 - remote[0]
        sent = sum(each.rows for each in mine) * shape.row_bytes
        return LayerLoad(
            prompt_local_ms=workload.n_prompt * here * speed.prefill_row_ms,
            token_local_ms=here * speed.decode_row_ms,
            prompt_sent=sum(sum(each.prompt_rows) for each in mine) * shape.row_bytes,
            token_sent=sent / chance if chance > 0 else 0.0,
            remote=remote,
        )

    @property
    def fixed_ttft_ms(self) -> float:
        """Give a prompt's time without any expert FFN."""
        speed, n = self.request.speed, self.request.workload.n_prompt
        return speed.prefill_base_ms + n * speed.prefill_dense_each_ms

    def makespan(self, i: int, n_replicas: int) -> float:
        """Give the rows of the busiest replica of a group while the prompt is computed."""
        known = (i, n_replicas)
        if known not in self._spans:
            self._spans[known] = longest_first(self.loads[i].prompt_rows, n_replicas).makespan
        return self._spans[known]

    def token_rows(self, i: int, n_replicas: int) -> float:
        """Give the rows that a replica of a called group computes for a token."""
        load = self.loads[i]
        return max(1.0, load.rows / (load.chance * n_replicas)) if load.chance > 0 else 0.0

    def prompt_wait_ms(self, i: int, n_replicas: int) -> float:
        """Give a group's round trips and its layer's transfers for a prompt."""
        link, load = self.request.link, self.loads[i]
        if not load.prompt_rows or sum(load.prompt_rows) == 0:
            return 0.0
        one_way = sum(load.prompt_rows) * self.request.shape.row_bytes / 2
        trips = rounds(one_way, n_replicas, self.payload_bytes)
        sent = self.layers[self.groups[i].layer].prompt_sent
        return trips * link.round_trip_ms + link.transfer_ms(sent)

    def token_wait_ms(self, i: int) -> float:
        """Give the round trip and the transfer of a token that calls."""
        link = self.request.link
        sent = self.layers[self.groups[i].layer].token_sent
        return link.round_trip_ms + link.transfer_ms(sent)

    def prompt_layer_ms(self, layer: int, row_ms: Sequence[float], z: Sequence[int]) -> float:
        """Predict one layer's experts of a prompt."""
        found = self.layers[layer].prompt_local_ms
        for i in self.by_layer[layer]:
            found = max(found, self.prompt_wait_ms(i, z[i]) + self.makespan(i, z[i]) * row_ms[i])
        return found

    def token_layer_ms(self, layer: int, row_ms: Sequence[float], z: Sequence[int]) -> float:
        """Predict one layer's experts of a token of the answer, on the average."""
        held, shape, link = self.layers[layer], self.request.shape, self.request.link
        mine, e = self.by_layer[layer], self.request.speed.decode_row_ms
        found = held.remote[0] * shape.top_k * e
        slowest = max((row_ms[i] / z[i] for i in mine), default=0.0)
        whole = max((row_ms[i] for i in mine), default=0.0)
        for m, chance in enumerate(held.remote[1:], 1):
            if chance > 0:
                away = link.round_trip_ms + link.transfer_ms(m * shape.row_bytes)
                away += max(whole, busiest(m, len(mine)) * slowest)
                found += chance * max((shape.top_k - m) * e, away)
        return found

    def times(self, row_ms: Sequence[float], z: Sequence[int]) -> Times:
        """Predict both times; `row_ms` is T(y) of every group, z its replicas."""
        n = range(len(self.layers))
        ttft = self.fixed_ttft_ms + sum(self.prompt_layer_ms(i, row_ms, z) for i in n)
        tpot = self.request.speed.decode_dense_ms
        tpot += sum(self.token_layer_ms(i, row_ms, z) for i in n)
        return Times(ttft, tpot)
