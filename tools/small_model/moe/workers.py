"""One training step on several CPU processes: each its rows, then each its share of the update.

Small kernels scale badly over threads and threads of one process share Python's lock, so every
worker is a process with one thread. Parameters, gradients and momenta lie in shared memory;
nothing is sent. Sums run in the order of the workers, so a run repeats bit by bit.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.multiprocessing as mp
from torch import Tensor

from .model import MoeModel
from .optimiser import Optimiser
from .passes import Passes


class Batches(Protocol):
    """Give a step's (inputs, targets), each [rows, length]."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]: ...


@dataclass
class Parts:
    """What a worker builds for itself, from picklable settings, after it has started."""

    forward_backward: Passes
    data: Batches
    optimiser: Optimiser


class Workers:
    """`n` processes, this one the first; `build(model, rank, n)` makes each one's parts."""

    def __init__(
        self, n: int, model: MoeModel, build: Callable[[MoeModel, int, int], Parts]
    ) -> None:
        model.share_memory()
        context = mp.get_context("spawn")
        shapes = [p.shape for p in model.parameters()]
        self.shared = _Shared(
            n,
            model,
            [[torch.zeros(s).share_memory_() for s in shapes] for _ in range(n)],
            torch.zeros(n, 3).share_memory_(),
            torch.zeros(2, dtype=torch.float64).share_memory_(),
            context.Barrier(n),
        )
        self.children = [
            context.Process(target=_serve, args=(self.shared, build, rank), daemon=True)
            for rank in range(1, n)
        ]
        for child in self.children:
            child.start()
        self.parts = build(model, 0, n)

    def step(self, step: int, scale: float) -> Tensor:
        """Take one step at learning rate factor `scale`; return [loss, balance, dropped]."""
        self.shared.order[0], self.shared.order[1] = step, scale
        self.shared.barrier.wait()
        _take(self.shared, self.parts, 0)
        return self.shared.figures.sum(0)

    def close(self) -> None:
        """End the children."""
        if self.children:
            self.shared.order[0] = -1
            self.shared.barrier.wait()
        for child in self.children:
            child.join()


@dataclass
class _Shared:
    n: int
    model: MoeModel
    gradients: list[list[Tensor]]  # [worker][parameter]
    figures: Tensor  # [worker, 3]
    order: Tensor  # step (-1: end) and scale
    barrier: Any


def _serve(shared: _Shared, build: Callable[[MoeModel, int, int], Parts], rank: int) -> None:
    # A terminal sends Ctrl-C to every process; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parts = build(shared.model, rank, shared.n)
    while True:
        shared.barrier.wait()
        if shared.order[0] < 0:
            return
        _take(shared, parts, rank)


def _take(shared: _Shared, parts: Parts, rank: int) -> None:
    step, scale = int(shared.order[0]), float(shared.order[1])
    ids, targets = parts.data.batch(step)
    rows = slice(len(ids) * rank // shared.n, len(ids) * (rank + 1) // shared.n)
    mine = targets[rows]
    loss_share = float((mine != -100).sum()) / float((targets != -100).sum())
    row_share = len(mine) / len(targets)
    gradients, figures = parts.forward_backward(ids[rows], mine, loss_share, row_share)
    shared.figures[rank] = figures
    for place, gradient in zip(shared.gradients[rank], gradients, strict=True):
        if gradient is not None:
            place.copy_(gradient)
    silent = [gradient is None for gradient in gradients]
    shared.barrier.wait()
    for i, p in enumerate(shared.model.parameters()):
        if silent[i] or not parts.optimiser.owns(p):
            continue
        total = shared.gradients[0][i]
        for other in shared.gradients[1:]:
            total += other[i]
        p.grad = total
    parts.optimiser.step(scale)
    shared.barrier.wait()
