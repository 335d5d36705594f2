"""Forward and backward of some rows of a batch."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import MoeModel, RouterLoad


def cross_entropy(hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of [batch, length, embed] against [batch, length]; -100 is left out."""
    logits = F.linear(hidden, output).flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100)


class Passes:
    """Gradients of rows, in passes of at most `micro` rows, less where memory asks for it.

    Products are in bfloat16 where `bf16`, else in float32. Compiled where that works.
    """

    def __init__(
        self,
        model: MoeModel,
        micro: int,
        capacity: float,
        balance: float,
        compiled: bool,
        bf16: bool,
    ) -> None:
        self.model, self.micro, self.capacity, self.balance = model, micro, capacity, balance
        self.device = next(model.parameters()).device
        self.compiled, self.bf16 = compiled, bf16
        self.cross_entropy = cross_entropy
        if compiled:
            # Block by block: what lies between (a CPU's sorted experts) is no graph's business.
            for block in model.blocks:
                block.forward = torch.compile(block.forward, dynamic=False)
            self.cross_entropy = torch.compile(cross_entropy, dynamic=False)

    def interpret(self) -> None:
        """Go on without compiled code."""
        if self.compiled:
            for block in self.model.blocks:
                del block.forward
        self.cross_entropy, self.compiled = cross_entropy, False

    def _forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, list[RouterLoad]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden, loads = self.model(ids, self.capacity)
            return self.cross_entropy(hidden, self.model.output.weight, targets), loads

    def __call__(
        self, ids: Tensor, targets: Tensor, loss_share: float, row_share: float
    ) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """Return the gradients of the parameters in order, and [loss, balance, dropped].

        These rows' mean loss counts `loss_share` in the batch, their routing `row_share`.
        """
        while True:
            try:
                return self._accumulate(ids, targets, loss_share, row_share)
            except torch.cuda.OutOfMemoryError:
                if self.micro == 1:
                    raise
                self.micro //= 2
                _say(f"out of memory: {self.micro} sequences per pass from here on")
                torch.cuda.empty_cache()
            except Exception as error:
                if not self.compiled:
                    raise
                text = f"{type(error).__name__}: {error}"[:800]
                _say(f"torch.compile failed, going on without it: {text}")
                self.interpret()

    def _accumulate(
        self, ids: Tensor, targets: Tensor, loss_share: float, row_share: float
    ) -> tuple[tuple[Tensor | None, ...], Tensor]:
        parameters = list(self.model.parameters())
        counted = (targets != -100).float().sum()
        sums: list[Tensor | None] = [None] * len(parameters)
        figures = torch.zeros(3, device=self.device)
        for first in range(0, len(ids), self.micro):
            part = slice(first, first + self.micro)
            loss, loads = self._forward(ids[part], targets[part])
            balance = torch.stack([load.balance for load in loads]).mean()
            dropped = torch.stack([load.dropped for load in loads]).mean()
            share = (targets[part] != -100).float().sum() / counted * loss_share
            even = len(ids[part]) / len(ids) * row_share
            total = loss * share + balance * (self.balance * even)
            figures += torch.stack([loss.detach() * share, balance.detach() * even, dropped * even])
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            for i, g in enumerate(gradients):
                if g is not None:  # None: a layer that does not take part yet
                    sums[i] = g if sums[i] is None else sums[i].add_(g)
        return tuple(sums), figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
