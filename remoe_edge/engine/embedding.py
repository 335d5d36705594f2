"""Turn a text into a vector, with models that were made for it.

Their header says how the vectors of a text's tokens become one (`ARCH.pooling_type`). Others have no such
key: what a mean of a chat model's last layer would be is nothing that anybody has trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.finite import require_finite
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.step_batch import StepBatch
from remoe_edge.errors import InputError, RemoeError, UnsupportedError
from remoe_edge.native import llama_cpp

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile

_low = llama_cpp.llama_cpp

_POOLED = {
    int(_low.LLAMA_POOLING_TYPE_MEAN): "mean",
    int(_low.LLAMA_POOLING_TYPE_CLS): "first",
    int(_low.LLAMA_POOLING_TYPE_LAST): "last",
}


def pooling_of(file: ModelFile) -> str:
    """Say how a model pools, "mean", "first" or "last"; "" where it makes no vectors of texts."""
    return _POOLED.get(file.unsigned(f"{file.architecture}.pooling_type") or 0, "")


def output_bytes(loaded: Loaded, n_vocab: int, n_embd: int) -> int:
    """Count what llama.cpp takes for the outputs of a text's tokens, logits among them."""
    return 4 * longest(loaded) * (n_vocab + n_embd) if loaded.pooling else 0


def longest(loaded: Loaded) -> int:
    """Give the tokens that a text may have: it is pooled within one step."""
    return min(loaded.settings.n_ubatch, loaded.settings.n_batch, loaded.n_ctx)


def require_pooling(loaded: Loaded) -> None:
    """Raise UnsupportedError for a model that makes no vectors of texts."""
    if not loaded.pooling:
        raise UnsupportedError(
            f"{loaded.path.name} makes no embeddings: its header has no pooling_type of mean, cls or last"
        )


def check(loaded: Loaded, n_tokens: int) -> None:
    """Raise as `require_pooling`, and InputError for a text that is too long or empty."""
    require_pooling(loaded)
    if n_tokens == 0:
        raise InputError("the text is empty")
    if n_tokens > longest(loaded):
        raise InputError(
            f"the text has {n_tokens} tokens, and up to {longest(loaded)} become one embedding: shorten "
            "it, or raise --ubatch, --batch or --ctx"
        )


def compute(
    loaded: Loaded, batch: StepBatch, place: int, tokens: list[int]
) -> npt.NDArray[np.float32]:
    """Compute the vector of a text, as llama.cpp gives it: not normalised.

    The place is empty before; the caller empties it afterwards. Raises as a step does.
    """
    llama = loaded.llama
    batch.clear()
    batch.add_whole(place, tokens)
    _low.llama_set_embeddings(llama.ctx, True)
    try:
        with loaded.computing():
            batch.decode(llama)
        row = _low.llama_get_embeddings_seq(llama.ctx, place)
        if not row:
            raise RemoeError("llama.cpp has computed no embedding")
        n_embd = int(_low.llama_model_n_embd_out(llama.model))
        made: npt.NDArray[np.float32] = np.ctypeslib.as_array(row, (n_embd,)).copy()
    finally:
        if loaded.llama is not None:
            _low.llama_set_embeddings(llama.ctx, False)
    require_finite(made, len(tokens), loaded.path)
    return made
