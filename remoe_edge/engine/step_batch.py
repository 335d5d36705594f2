"""A batch of llama.cpp's: the tokens of one step, whichever conversations they belong to."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from remoe_edge.native import llama_cpp

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel

_low = llama_cpp.llama_cpp


class StepBatch:
    """Own the arrays of a batch of at most `n_most` tokens. One thread.

    width: of the hidden state that comes with each token, for contexts that take one; 0: none does.
    """

    def __init__(self, n_most: int, width: int = 0) -> None:
        self.width = width
        self._states = np.zeros((n_most, width), np.float32)
        self._token = np.zeros(n_most, np.int32)
        self._position = np.zeros(n_most, np.int32)
        self._n_places = np.ones(n_most, np.int32)
        self._place = np.zeros(n_most, np.int32)
        self._wanted = np.zeros(n_most, np.int8)
        # llama.cpp takes a list of places for each token: here lists of one.
        item = self._place.itemsize
        self._lists = self._place.ctypes.data + item * np.arange(n_most, dtype=np.uint64)
        fields = dict(_low.llama_batch._fields_)
        arrays: dict[str, Any] = {
            "token": self._token, "pos": self._position, "n_seq_id": self._n_places,
            "seq_id": self._lists, "logits": self._wanted,
        }  # fmt: skip
        if width:
            arrays["embd"] = self._states
        self._struct = _low.llama_batch(n_tokens=0, embd=None)
        for name, array in arrays.items():
            setattr(self._struct, name, ctypes.cast(array.ctypes.data, fields[name]))
        self._n = 0

    def clear(self) -> None:
        """Hold no token."""
        self._n = 0

    def add(self, place: int, position: int, tokens: Sequence[int], *, wanted: bool) -> int:
        """Add a conversation's next tokens; give the last one's index, whose logits are computed if
        `wanted`."""
        begin, end = self._n, self._n + len(tokens)
        self._token[begin:end] = tokens
        self._position[begin:end] = range(position, position + len(tokens))
        self._place[begin:end] = place
        self._wanted[begin:end] = 0
        self._wanted[end - 1] = wanted
        self._n = end
        return end - 1

    def add_state(self, position: int, token: int, state: npt.NDArray[np.float32]) -> None:
        """Add the only conversation's next token with a hidden state; its outputs alone are computed."""
        self._wanted[: self._n] = 0
        self._states[self._n] = state
        self.add(0, position, [token], wanted=True)

    def add_whole(self, place: int, tokens: Sequence[int]) -> None:
        """Add a text from its first token on; outputs of all its tokens are computed."""
        begin, end = self._n, self._n + len(tokens)
        self.add(place, 0, tokens, wanted=True)
        self._wanted[begin:end] = 1

    def add_ones(self, ones: Iterable[tuple[int, int, int]]) -> None:
        """Add (place, position, token) of each conversation; all their logits are computed."""
        n = self._n
        for place, position, token in ones:
            self._token[n], self._position[n], self._place[n] = token, position, place
            n += 1
        self._wanted[self._n : n] = 1
        self._n = n

    def decode(self, llama: Any) -> None:
        """Compute it. Raises RuntimeError with llama.cpp's return code where that is not 0."""
        self.decode_in(llama.ctx)

    def decode_in(self, context: Any) -> None:
        """Compute it in a context of llama.cpp's."""
        self._struct.n_tokens = self._n
        code = _low.llama_decode(context, self._struct)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")


def declared_draft(native: StreamedModel | None) -> contextlib.AbstractContextManager[None]:
    """Tell the core that the block's steps are a conversation's next token and guesses after it."""
    return declared(native, "draft")


@contextlib.contextmanager
def declared(native: StreamedModel | None, kind: str) -> Iterator[None]:
    """Tell the core what the block's steps are for: "prompt", "decode" or "draft"."""
    if native is not None:
        native.declare_steps(kind)
    try:
        yield
    finally:
        if native is not None:
            native.declare_steps("by-tokens")
