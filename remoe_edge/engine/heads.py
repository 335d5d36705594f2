"""Guess the next tokens with the layers that a model has for that: multi-token prediction (MTP).

Such a layer takes the hidden state after a token, and the token that followed it, and predicts the one
after that. llama.cpp runs it in a context of its own over the same weights, so that its experts come from
storage as all others do, and its guesses are verified as those from the text are.

The model's hidden states are taken where its graph has them anyway, so that no bit of its own changes. Of
a prompt that is the last token's: the heads' memory begins with the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.step_batch import StepBatch, declared_draft
from remoe_edge.errors import RemoeError, UnsupportedError
from remoe_edge.native import _core, llama_cpp

_low = llama_cpp.llama_cpp

# Architectures whose graph of such layers was tried, and whether their own graph leaves out, in its last
# layer, the tokens that no output was asked for: then hidden states are to be had of the others only.
ARCHITECTURES = {"cohere2moe": False, "deepseek2": True, "glm4moe": True, "hy_v3": False}

# Of that layer, what llama.cpp's graphs cannot do without: they would end the process.
_NEEDED = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "ffn_gate_inp")
_NEEDED_LATENT = ("attn_q_a", "attn_k_b")  # of deepseek2, whose graph here is that of later models

_MOST_BEHIND = 64  # tokens that the heads have not seen yet; older ones they forget
_CONTEXT_TYPE = 1  # LLAMA_CONTEXT_TYPE_MTP

Row = npt.NDArray[np.float32]


def check_heads(file: _core.ModelFile, draft: str) -> None:
    """Raise UnsupportedError, which says why, where heads are wanted and the model's cannot be used."""
    if draft != "mtp":
        return
    arch, path = file.architecture, file.paths[0]
    n_heads = file.unsigned(f"{arch}.nextn_predict_layers") or 0
    n_blocks = file.unsigned(f"{arch}.block_count") or 0
    why = ""
    if not n_heads:
        why = "has no layers that predict further tokens"
    elif arch not in ARCHITECTURES:
        why = f"is of the architecture {arch}, and the heads of {', '.join(ARCHITECTURES)} can be used"
    elif n_heads != 1:
        why = f"has {n_heads} layers that predict further tokens, and one can be used"
    elif lacking := _lacking(file, n_blocks - 1):
        why = f"lacks {lacking}, which llama.cpp's graph for it takes"
    elif file.number(f"{arch}.attention.temperature_scale"):
        why = "scales its attention, and llama.cpp's graph for further tokens does not"
    if why:
        raise UnsupportedError(f"--draft mtp: {path} {why}: --draft auto guesses from the text")


def _lacking(file: _core.ModelFile, block: int) -> str:
    latent = _NEEDED_LATENT if file.architecture == "deepseek2" else ()
    names = [f"blk.{block}.{name}.weight" for name in (*_NEEDED, *latent)]
    return next((name for name in names if file.find(name) is None), "")


@dataclass
class _Pair:
    """Hold a token, its position, and the hidden state after the token before it."""

    position: int
    token: int
    state: Row


class Heads:
    """Own the context that a model's heads run in. One conversation, one thread.

    Made after the model and its context, and closed before them.
    """

    def __init__(self, loaded: Loaded) -> None:
        llama = loaded.llama
        self._loaded = loaded
        self._extra = _staging()
        self._batch = StepBatch(_MOST_BEHIND, int(_low.llama_model_n_embd_out(llama.model)))
        params = type(llama.context_params).from_buffer_copy(llama.context_params)
        params.ctx_type = _CONTEXT_TYPE
        params.n_ctx, params.n_seq_max = loaded.n_ctx, 1
        params.n_batch = params.n_ubatch = _MOST_BEHIND
        self._context = _low.llama_init_from_model(llama.model, params)
        if not self._context:
            raise RemoeError("llama.cpp made no context for the layers that predict further tokens")
        self._memory = _low.llama_get_memory(self._context)
        self._extra.llama_set_embeddings_nextn(self._context, True, False)
        masked = ARCHITECTURES[llama.metadata["general.architecture"]]
        self._extra.llama_set_embeddings_nextn(llama.ctx, True, masked)
        self._behind: deque[_Pair] = deque(maxlen=_MOST_BEHIND)
        self._end = 0  # position behind the last token that they have seen

    def close(self) -> None:
        """Free the context."""
        if self._context:
            _low.llama_free(self._context)
            self._context = None

    def begin(self) -> None:
        """Forget every token: an answer begins."""
        self._behind.clear()
        self._forget(0)

    def follow(self, token: int, row: int) -> None:
        """Take in a token that the model says after the one at `row` of its last step."""
        llama = self._loaded.llama
        state = self._state(llama.ctx, row)
        self._behind.append(_Pair(int(llama.n_tokens), token, state))

    def guess(self, n_most: int) -> list[int]:
        """Give up to `n_most` tokens that may follow; each but the first goes by the one before."""
        if not self._behind or n_most < 1:
            return []
        pairs = list(self._behind)
        # What they guessed beyond what they have seen; all, where there is a gap.
        self._forget(self._end if pairs[0].position == self._end else 0)
        guesses = [self._run(pairs)]
        self._behind.clear()
        self._end = pairs[-1].position + 1
        row = len(pairs) - 1
        for position in range(self._end, self._end + n_most - 1):
            pair = _Pair(position, guesses[-1], self._state(self._context, row))
            guesses.append(self._run([pair]))
            row = 0
        return guesses

    def _forget(self, begin: int) -> None:
        _low.llama_memory_seq_rm(self._memory, 0, begin, -1)

    def _run(self, pairs: Iterable[_Pair]) -> int:
        """Run pairs that follow each other; give the likeliest token after the last."""
        self._batch.clear()
        for pair in pairs:
            self._batch.add_state(pair.position, pair.token, pair.state)
        with declared_draft(self._loaded.native):
            self._batch.decode_in(self._context)
        logits = _low.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._loaded.llama.n_vocab(),)).argmax())

    def _state(self, context: Any, row: int) -> Row:
        """Copy the hidden state after the token at `row` of a context's last step."""
        found = self._extra.llama_get_embeddings_nextn_ith(context, row)
        if not found:
            raise RemoeError(f"llama.cpp gave no hidden state of row {row}")
        state: Row = np.ctypeslib.as_array(found, (self._batch.width,)).copy()
        return state


def _staging() -> Any:
    """Give llama-cpp-python's names for llama.cpp's staging header. Raises UnsupportedError."""
    try:
        from llama_cpp import llama_cpp_ext
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(f"--draft mtp: this llama-cpp-python has no {error}") from None
    return llama_cpp_ext
