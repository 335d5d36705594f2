"""What an engine has asked of llama.cpp, call by call, and the logits it got for each."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.native import llama_cpp

Call = list[
    Any
]  # ["decode", tokens, n_past, every], ["remove", from], ["clear"]: see tests/stock.py


class Calls:
    """Record an engine's calls from now on, in the order in which they were done.

    A step that failed is left out: the engine promises to go on as if it had not been. before_step is
    called before each step, with its number.
    """

    def __init__(self, llama: Any, before_step: Callable[[int], None]) -> None:
        self.done: list[Call] = []
        self.rows: list[npt.NDArray[np.float32]] = []
        self._llama, self._before = llama, before_step
        self._n_steps = 0
        context = llama._ctx
        self._decode, self._remove = context.decode, context.kv_cache_seq_rm
        self._clear, self._reset = context.kv_cache_clear, llama.reset
        context.decode, context.kv_cache_seq_rm = self.decode, self.remove
        context.kv_cache_clear, llama.reset = self.clear, self.reset

    def decode(self, batch: Any) -> None:
        """Compute a batch, and keep the logits after its last token."""
        self._before(self._n_steps)
        self._n_steps += 1
        self._decode(batch)
        low = batch.batch
        n = low.n_tokens
        every = n > 1 and bool(low.logits[0])
        self.done.append(["decode", [low.token[i] for i in range(n)], low.pos[0], every])
        n_vocab = int(self._llama.n_vocab())
        row = llama_cpp.llama_get_logits_ith(self._llama._ctx.ctx, -1)
        at = ctypes.addressof(row.contents)
        values = (ctypes.c_float * n_vocab).from_address(at)
        self.rows.append(np.frombuffer(values, np.float32).copy())

    def remove(self, sequence: int, begin: int, end: int) -> bool:
        """Take tokens back, from one on."""
        done: bool = self._remove(sequence, begin, end)
        self.done.append(["remove", begin])
        return done

    def clear(self) -> None:
        """Empty the context."""
        self._clear()
        self.done.append(["clear"])

    def reset(self) -> None:
        """Begin anew; of hybrid models that empties the context."""
        self._reset()
        if self._llama._is_recurrent or self._llama._is_hybrid:
            self.done.append(["clear"])
