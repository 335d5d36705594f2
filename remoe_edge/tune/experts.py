"""A layer's experts, frozen: the gradient flows through them to their input and the weights of the
choice, never to themselves.

One autograd node for the whole layer, because autograd over 64 small products would keep 64 slices
and a gradient for weights that never move.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FrozenExperts(torch.autograd.Function):  # type: ignore[misc]
    """Return sum_k weight_k * down_e(silu(gate_e x) * up_e x) for each token's chosen experts e.

    x [tokens, d], chosen [tokens, k] int64, weight [tokens, k] float32; gate_up [experts, 2 f, d]
    (gate above up: one product instead of two), down [experts, d, f], all of x's dtype. Returns
    [tokens, d].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, chosen: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        """Run the experts grouped by number, so that each is one matrix product."""
        order, ends = _group(chosen, down.shape[0])
        token = order // chosen.shape[1]
        both = _product(x.index_select(0, token), gate_up, ends)
        g, u = both.chunk(2, dim=1)
        y = _product(F.silu(g).mul_(u), down, ends)
        y *= weight.reshape(-1)[order, None].to(y.dtype)
        ctx.save_for_backward(chosen, weight, gate_up, down, order, token, both)
        ctx.ends = ends
        return _gather_back(y, order, chosen.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients for x and weight; the experts are frozen."""
        chosen, weight, gate_up, down, order, token, both = ctx.saved_tensors
        g, u = both.chunk(2, dim=1)
        out = grads[0].index_select(0, token)
        # d(loss)/d(inner) before the choice's weight: its product with inner is the weight's
        # gradient, so the experts' outputs need not be kept.
        inner = _product(out, down.transpose(1, 2), ctx.ends)
        sigma = torch.sigmoid(g)
        silu = g * sigma
        share = (inner.float() * (silu * u).float()).sum(-1)
        weight_grad = torch.empty_like(weight).reshape(-1)
        weight_grad[order] = share.to(weight.dtype)
        inner *= weight.reshape(-1)[order, None].to(inner.dtype)
        both_grad = torch.empty_like(both)
        gate_grad, up_grad = both_grad.chunk(2, dim=1)
        torch.mul(inner, silu, out=up_grad)
        # d silu(g) / d g = sigma + silu (1 - sigma)
        inner *= u
        torch.mul(inner, sigma + silu - silu * sigma, out=gate_grad)
        rows = _product(both_grad, gate_up.transpose(1, 2), ctx.ends)
        return (
            _gather_back(rows, order, chosen.shape),
            None,
            weight_grad.view_as(weight),
            None,
            None,
        )


def _group(chosen: Tensor, n_experts: int) -> tuple[Tensor, list[int] | Tensor]:
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=n_experts).cumsum(0)
    # The grouped kernel takes the ends where they are; slices need them on the host.
    return order, ends.int() if _grouped_kernel(chosen.device) else ends.tolist()


def _gather_back(rows: Tensor, order: Tensor, chosen_shape: torch.Size) -> Tensor:
    # Not index_add: its order of addition varies on CUDA, and a run must be repeatable.
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return rows.index_select(0, place).view(*chosen_shape, -1).sum(1)


def _grouped_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and hasattr(torch, "_grouped_mm")


def _product(rows: Tensor, matrices: Tensor, ends: list[int] | Tensor) -> Tensor:
    """Multiply each group of rows [n, in] by its matrix [out, in] transposed."""
    if isinstance(ends, Tensor):
        if rows.dtype == torch.bfloat16:
            return torch._grouped_mm(rows, matrices.transpose(1, 2), offs=ends)
        ends = ends.tolist()
    out = rows.new_empty(rows.shape[0], matrices.shape[1])
    start = 0
    for number, end in enumerate(ends):
        if end > start:
            torch.mm(rows[start:end], matrices[number].t(), out=out[start:end])
        start = end
    return out
