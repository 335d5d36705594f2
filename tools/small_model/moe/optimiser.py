"""Muon for the matrices inside the layers, AdamW for the rest; all state in one place.

Muon orthogonalises each matrix' momentum (Jordan et al. 2024) and is scaled as by Moonlight
(arXiv:2502.16982), so that both halves share one learning rate. Expert stacks are
orthogonalised matrix by matrix, in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalised(g: Tensor, steps: int = 4) -> Tensor:
    """Return roughly U V^T of each matrix of g = U S V^T; g is [..., rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-2, -1)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x


def _by_muon(name: str, p: Tensor) -> bool:
    return p.dim() >= 2 and "router" not in name and not name.startswith(("embed", "output"))


def momenta(model: nn.Module) -> dict[str, Tensor]:
    """Return fresh momenta of the matrices that Muon steps, by parameter name."""
    return {name: torch.zeros_like(p) for name, p in model.named_parameters() if _by_muon(name, p)}


class Optimiser:
    """Steps a model's parameters; `lr` is multiplied by `scale` at every step.

    As worker `rank` of `n` it updates every n-th matrix, and rank 0 what AdamW has; `buffers`
    are then everybody's, in shared memory.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        muon_lr: float,
        decay: float = 0.1,
        momentum: float = 0.95,
        rank: int = 0,
        n: int = 1,
        buffers: dict[str, Tensor] | None = None,
    ) -> None:
        self.rank, self.n = rank, n
        self.muon_lr, self.decay, self.momentum = muon_lr, decay, momentum
        named = dict(model.named_parameters())
        self.matrices = {name: p for name, p in named.items() if _by_muon(name, p)}
        rest = [p for name, p in named.items() if name not in self.matrices]
        self.buffers = buffers or momenta(model)
        mine = list(self.matrices.values())[rank::n] + (rest if rank == 0 else [])
        self._owned = {id(p) for p in mine}
        on_gpu = next(model.parameters()).is_cuda
        self.lr = lr
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.01},
                {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, 0.95),
            eps=1e-8,
            fused=on_gpu,
        )

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update every parameter from its gradient and clear the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = self.lr * scale
        self.adam.step()
        lr = self.muon_lr * scale
        due = [name for name, p in self.matrices.items() if p.grad is not None]
        if not next(iter(self.parameters())).is_cuda:
            for name in due:
                self._muon([name], lr)
        else:
            # Equal shapes go through one batched orthogonalisation: fewer, larger kernels.
            by_shape: dict[tuple[int, ...], list[str]] = {}
            for name in due:
                by_shape.setdefault(tuple(self.matrices[name].shape), []).append(name)
            for names in by_shape.values():
                self._muon(names, lr)
        self.zero_grad()

    @torch.no_grad()
    def _muon(self, names: list[str], lr: float) -> None:
        parameters = [self.matrices[name] for name in names]
        shape = parameters[0].shape
        factor = 0.2 * max(shape[-2], shape[-1]) ** 0.5
        directions = []
        for name, p in zip(names, parameters, strict=True):
            assert p.grad is not None
            buffer = self.buffers[name]
            buffer.lerp_(p.grad, 1 - self.momentum)
            directions.append(p.grad.lerp_(buffer, self.momentum))
        if len(directions) == 1:  # on a CPU, a few matrices at a time stay in cache
            pieces = directions[0].split(16) if directions[0].dim() == 3 else [directions[0]]
            update = [torch.cat([orthogonalised(piece) for piece in pieces])]
        else:
            update = list(orthogonalised(torch.stack(directions)))
        for p, u in zip(parameters, update, strict=True):
            p.mul_(1 - lr * self.decay)
            p.add_(u.to(p.dtype), alpha=-lr * factor)

    def owns(self, p: Tensor) -> bool:
        """Tell whether this worker updates `p`."""
        return id(p) in self._owned

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def parameters(self) -> Iterable[Tensor]:
        """Yield every parameter this optimiser owns."""
        yield from self.matrices.values()
        for group in self.adam.param_groups:
            yield from group["params"]

    def state_dict(self) -> dict[str, Any]:
        """Return the state a resumed run needs."""
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        for name, buffer in self.buffers.items():
            buffer.copy_(state["buffers"][name])
        self.adam.load_state_dict(state["adam"])
