"""Read the strings that a loaded model carries, however long and in whatever bytes.

llama-cpp-python reads them through a buffer that loses the last byte of a value which just fills it,
drops all of them for one that is no UTF-8, and refuses a model whose chat template does not compile.
`Llama` here is its class with these three mended.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from remoe_edge.engine import template_sandbox
from remoe_edge.native import llama_cpp

_low = llama_cpp.llama_cpp

TEMPLATE = "tokenizer.chat_template"


def values(model: Any) -> dict[str, bytes]:
    """Return every key of a `llama_model` that is no array."""
    found = {}
    for i in range(_low.llama_model_meta_count(model)):
        key = _read(partial(_low.llama_model_meta_key_by_index, model, i))
        text = _read(partial(_low.llama_model_meta_val_str_by_index, model, i))
        if key is not None and text is not None:
            found[key.decode("utf-8", "replace")] = text
    return found


def _read(ask: Callable[[Any, int], int]) -> bytes | None:
    n_bytes = ask(ctypes.create_string_buffer(1), 1)
    if n_bytes < 0:
        return None
    buffer = ctypes.create_string_buffer(n_bytes + 1)  # what C writes ends in a zero
    ask(buffer, n_bytes + 1)
    return buffer.value


class Llama(llama_cpp.Llama):  # type: ignore[misc]
    """Load a model as `llama_cpp.Llama` does; `metadata` has every key that is no array.

    A chat template that does not compile is left out of `metadata`, since the class would refuse the
    model for it. `chat_template` reads it from the model.
    """

    @property
    def metadata(self) -> dict[str, str]:
        """Give the model's metadata as text; bytes that are no UTF-8 are replaced."""
        return self._metadata

    @metadata.setter
    def metadata(self, _: dict[str, str]) -> None:
        texts = {
            key: text.decode("utf-8", "replace") for key, text in values(self._model.model).items()
        }
        self._metadata = {
            key: text
            for key, text in texts.items()
            if not key.startswith(TEMPLATE) or template_sandbox.compiles(text)
        }
