"""Fixed-capacity dispatch: tokens to expert slots and back, gathers only.

Every expert has the same number of slots, so the experts are three batched products. The
two permutations are each other's transpose; writing both backward passes as gathers avoids
atomic adds, so a run repeats bit by bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Where each of a batch's (token, choice) pairs goes."""

    slot: Tensor  # [tokens, k] slot of each pair; any valid slot where not kept
    kept: Tensor  # [tokens, k] bool: the expert had room
    token: Tensor  # [experts * capacity] the token in each slot; 0 where empty
    pair: Tensor  # [experts * capacity] its index among tokens * k pairs; 0 where empty
    used: Tensor  # [experts * capacity] bool: the slot holds a token
    counts: Tensor  # [experts] pairs routed to each expert, before dropping


def plan(experts_of: Tensor, experts: int, capacity: int) -> Plan:
    """Assign slots, in token order within each expert; pairs beyond `capacity` are dropped.

    `experts_of`: [tokens, k] int64.
    """
    tokens, k = experts_of.shape
    flat = experts_of.reshape(-1)
    order = torch.argsort(flat.to(torch.int16), stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=flat.device)
    counts = counts.scatter_add(0, flat, torch.ones_like(flat))
    first = torch.cumsum(counts, 0) - counts
    column = torch.arange(capacity, device=flat.device)
    used = (column[None, :] < counts[:, None]).reshape(-1)
    place = (first[:, None] + column[None, :]).reshape(-1)
    pair = torch.where(used, order[place.clamp(max=tokens * k - 1)], 0)
    rank = torch.empty_like(flat)
    rank = rank.scatter(0, order, torch.arange(tokens * k, device=flat.device))
    rank = rank - first[flat]
    kept = rank < capacity
    slot = flat * capacity + rank.clamp(max=capacity - 1)
    return Plan(slot.view(tokens, k), kept.view(tokens, k), pair // k, pair, used, counts)


class ToSlots(torch.autograd.Function):
    """[tokens, d] to [slots, d]; empty slots hold token 0 and get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, slot: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(slot, kept)
        return x[token]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slot, kept = ctx.saved_tensors
        return (
            (grad[slot] * kept[..., None]).sum(1, dtype=torch.float32).to(grad.dtype),
            None,
            None,
            None,
        )


class FromSlots(torch.autograd.Function):
    """[slots, d] to [tokens, d]: each token's experts, weighed and summed."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, slot: Tensor, token: Tensor, pair: Tensor, used: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y, weight, slot, token, pair, used)
        return (y[slot] * weight[..., None]).sum(1, dtype=torch.float32).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, slot, token, pair, used = ctx.saved_tensors
        share = weight.reshape(-1)[pair] * used
        grad_y = grad[token] * share[:, None].to(grad.dtype)
        grad_weight = (y[slot].float() * grad[:, None, :].float()).sum(-1).to(weight.dtype)
        return grad_y, grad_weight, None, None, None, None
