"""Run two models over the same tokens in llama.cpp and compare logits, routing and greedy text."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from remoe_edge import amx
from remoe_edge.engine.llama_log import log_to
from remoe_edge.errors import ModelError
from widen.source import Source

Tokens = npt.NDArray[np.int32]

_ARGSORT = b"ffn_moe_argsort-"


@cache
def _ggml() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    lib.ggml_get_name.restype = ctypes.c_char_p
    lib.ggml_get_name.argtypes = [ctypes.c_void_p]
    lib.ggml_nbytes.restype = ctypes.c_size_t
    lib.ggml_nbytes.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_tensor_get.restype = None
    lib.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    return lib


@dataclass(frozen=True)
class Reading:
    """What a model made of one run of tokens."""

    logits: npt.NDArray[np.float32]  # [tokens, vocabulary]
    routing: npt.NDArray[np.int32]  # [layers, tokens, top_k], each set sorted by expert


class Runner:
    """One model in llama.cpp, its routing overheard through the evaluation callback."""

    def __init__(self, path: Path, context: int, threads: int) -> None:
        self.file = Source(path)
        self.context = context
        llama_cpp.llama_backend_init()
        log_to(lambda level, line: None)
        amx.refuse_broken()
        self._model: Any = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ModelError(f"{path}: llama.cpp does not load it")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self._vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(self._overhear)
        params.cb_eval = self._callback
        self._heard: dict[int, npt.NDArray[np.int32]] = {}
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(f"{path}: llama.cpp opens no context of {context} tokens on it")

    def close(self) -> None:
        """Free the context and the model, and give llama.cpp's log back."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
        log_to(None)

    def tokenize(self, text: str) -> Tokens:
        """Return the text's tokens, special ones such as <|endoftext|> among them, no start token."""
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(
            self._vocab, raw, len(raw), buffer, len(buffer), False, True
        )
        return np.array(buffer[:count], dtype=np.int32)

    def read(self, tokens: Tokens) -> Reading:
        """Evaluate one run of tokens from an empty cache."""
        self._forget()
        logits = self._decode(tokens, 0)
        routing = [self._heard[layer] for layer in sorted(self._heard)]
        return Reading(logits, np.stack(routing))

    def greedy(self, prompt: Tokens, count: int) -> Tokens:
        """Continue the prompt by its most likely tokens."""
        self._forget()
        found: list[int] = []
        logits = self._decode(prompt, 0)
        for _ in range(count):
            found.append(int(logits[-1].argmax()))
            logits = self._decode(np.array(found[-1:]), len(prompt) + len(found) - 1)
        return np.array(found, dtype=np.int32)

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode(self, tokens: Tokens, position: int) -> npt.NDArray[np.float32]:
        self._heard.clear()
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i] = int(token)
                batch.pos[i] = position + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = 1
            if llama_cpp.llama_decode(self._context, batch) != 0:
                raise ModelError(f"{self.file.path}: llama.cpp failed to evaluate")
        finally:
            llama_cpp.llama_batch_free(batch)
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(len(tokens), self.vocabulary)).copy()

    def _overhear(self, tensor: int, ask: bool, user: int) -> bool:
        name = _ggml().ggml_get_name(tensor)
        if not name.startswith(_ARGSORT):
            return not ask
        if not ask:
            order = np.empty(_ggml().ggml_nbytes(tensor) // 4, dtype=np.int32)
            _ggml().ggml_backend_tensor_get(tensor, order.ctypes.data, 0, order.nbytes)
            chosen = order.reshape(-1, self.file.experts)[:, : self.file.top_k]
            self._heard[int(name[len(_ARGSORT) :])] = np.sort(chosen, axis=1)
        return True


@contextmanager
def opened(path: Path, context: int, threads: int) -> Iterator[Runner]:
    """Open a model for the length of a with block."""
    runner = Runner(path, context, threads)
    try:
        yield runner
    finally:
        runner.close()


def real_layers(twin: Source) -> list[int]:
    """Return the twin's layers that are not echoes, in the source's order."""
    echoes = set(twin.key("remoe_edge.widened_echo_layers", []) or [])
    return [layer for layer in range(twin.layers) if layer not in echoes]


@dataclass
class Comparison:
    """Sums over all runs of tokens so far."""

    tokens: int = 0
    sets: int = 0
    equal_sets: int = 0
    equal_argmax: int = 0
    predicted: int = 0
    source_nats: float = 0.0
    twin_nats: float = 0.0
    max_logit_error: float = 0.0
    greedy_runs: int = 0
    greedy_equal: int = 0

    def add(self, tokens: Tokens, source: Reading, twin: Reading, layers: list[int]) -> None:
        """Add one run; `layers` are the twin's that stand for the source's, in order."""
        same = (source.routing == twin.routing[layers]).all(axis=-1)
        self.tokens += len(tokens)
        self.sets += same.size
        self.equal_sets += int(same.sum())
        self.equal_argmax += int((source.logits.argmax(1) == twin.logits.argmax(1)).sum())
        self.predicted += len(tokens) - 1
        self.source_nats += nats(source.logits, tokens)
        self.twin_nats += nats(twin.logits, tokens)
        error = float(np.abs(source.logits - twin.logits).max())
        self.max_logit_error = max(self.max_logit_error, error)

    @property
    def routing_equal(self) -> float:
        """Share of (token, layer) top-k sets that are the same."""
        return self.equal_sets / self.sets

    @property
    def perplexities(self) -> tuple[float, float]:
        """Perplexity of source and twin."""
        return (
            math.exp(self.source_nats / self.predicted),
            math.exp(self.twin_nats / self.predicted),
        )


def nats(logits: npt.NDArray[np.float32], tokens: Tokens) -> float:
    """Return the summed negative log-likelihood of every token but the first."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(rows).sum(axis=1))
    return float((log_sum - rows[np.arange(len(rows)), tokens[1:]]).sum())
