"""llama.cpp as it comes, driven through its C functions. Runs in an arm's own process.

Nothing of the engine may be imported here: it would register a device with llama.cpp.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp as low
import numpy as np
import numpy.typing as npt

from remoe_edge import amx
from remoe_edge.bench.measure import one_by_one
from remoe_edge.engine.llama_log import log_to


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def experts_on_cpu() -> ctypes.Array[_Override]:
    """Give the overrides that llama.cpp's --cpu-moe makes: experts stay with the processor."""
    cpu = low.llama_cpp._lib.ggml_backend_cpu_buffer_type
    cpu.restype = ctypes.c_void_p
    experts = _Override(rb"\.ffn_(up|gate|down|gate_up)_exps\.", cpu())
    return (_Override * 2)(experts, _Override(None, None))


class StockModel:
    """Hold a model that llama.cpp maps ("stock-mmap") or reads whole ("stock-resident").

    `cpu_moe`: of layers on a GPU, experts stay with the processor. Raises RuntimeError with llama.cpp's
    own words when it refuses the model.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        *,
        repack: bool,
        threads: int,
        n_ctx: int,
        n_batch: int,
        n_ubatch: int,
        gpu_layers: int = 0,
        cpu_moe: bool = True,
    ) -> None:
        amx.avoid()
        if repack:
            amx.refuse_broken()
        self._said: list[str] = []
        log_to(self._listen)
        low.llama_backend_init()
        params = low.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        no_device, on_cpu = (ctypes.c_void_p * 1)(), experts_on_cpu()
        if gpu_layers and cpu_moe:  # with the experts where the engine has them
            params.tensor_buft_overrides = ctypes.addressof(on_cpu)
        elif not gpu_layers:  # else llama.cpp would use a GPU for long prompts
            params.devices = ctypes.addressof(no_device)
        params.use_extra_bufts = repack
        params.load_mode = (
            low.LLAMA_LOAD_MODE_MMAP if kind == "stock-mmap" else low.LLAMA_LOAD_MODE_NONE
        )
        self._model = low.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise RuntimeError(self._refusal("llama.cpp refused the model"))
        settings = low.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = n_ctx, n_batch, n_ubatch
        settings.n_threads = settings.n_threads_batch = threads
        self._context = low.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(self._refusal("llama.cpp made no context"))
        self._n_batch = n_batch
        self._n_vocab = low.llama_vocab_n_tokens(low.llama_model_get_vocab(self._model))
        load_mode = "mmap" if kind == "stock-mmap" else "none"
        self._about: dict[str, Any] = {"load_mode": load_mode, "repack": repack}
        if gpu_layers:
            self._about["gpu_layers"] = gpu_layers

    def _listen(self, level: int, line: str) -> None:
        if level in (3, 4):  # warnings and errors
            self._said.append(line.strip())

    def _refusal(self, what: str) -> str:
        return f"{what}: {'; '.join(self._said[-2:])}" if self._said else what

    def evaluate(self, tokens: Sequence[int], *, reset: bool) -> npt.NDArray[np.float32]:
        """Run tokens, a batch at a time, and give the logits after the last one."""
        if reset:
            low.llama_memory_clear(low.llama_get_memory(self._context), True)
        for at in range(0, len(tokens), self._n_batch):
            piece = list(tokens[at : at + self._n_batch])
            array = (low.llama_token * len(piece))(*piece)
            status = low.llama_decode(self._context, low.llama_batch_get_one(array, len(piece)))
            if status != 0:
                raise RuntimeError(self._refusal(f"llama_decode returned {status}"))
        row = low.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(row, (self._n_vocab,))

    def steps(self, prompt: Sequence[int], text: Sequence[int], n_tokens: int) -> Iterator[int]:
        """Compute token by token; see `Model.steps`."""
        return one_by_one(self.evaluate, prompt, text, n_tokens)

    def counts(self) -> None:
        """Have no cache."""

    def counts_by_layer(self) -> None:
        """Have no cache."""

    def remote(self) -> None:
        """Ask nobody."""

    def drafts(self) -> None:
        """Guess nothing."""

    def about(self) -> dict[str, Any]:
        """Tell how the model is loaded."""
        return dict(self._about)
