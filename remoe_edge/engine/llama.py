"""Give llama-cpp-python's `Llama` a model that the native core has loaded.

`Llama` brings tokenising, chat templates, sampling and grammars; it only knows how to load a whole file.
While `loading` is open, its two calls into llama.cpp that make a model and a context go through
functions of ours instead. The package is pinned, so the names are known to be there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from remoe_edge.engine.llama_log import log_to
from remoe_edge.errors import InputError
from remoe_edge.machine import amx
from remoe_edge.native import llama_cpp

_low = llama_cpp.llama_cpp
_lock = threading.Lock()

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

_BUFFER = re.compile(r"(\S+) +(KV|compute|output|model|RS) buffer size *= *([\d.]+) MiB")


class FilePath(str):
    """A path for `Llama`, which asks for its UTF-8 and gets the bytes that the kernel has."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return the path as the file system spells it."""
        return os.fsencode(str(self))  # fsencode itself asks a str for its encode()


@dataclass
class Buffers:
    """Hold what llama.cpp says it reserved, in bytes by kind ("KV", "compute", ...)."""

    n_bytes: dict[str, int] = field(default_factory=dict)

    def read(self, line: str) -> None:
        """Take in one line of llama.cpp's log."""
        for device, kind, mebibytes in _BUFFER.findall(line):
            if device == "Storage":  # addresses without memory
                continue
            self.n_bytes[kind] = self.n_bytes.get(kind, 0) + int(float(mebibytes) * 2**20)


@contextlib.contextmanager
def listening(buffers: Buffers, verbose: bool) -> Iterator[None]:
    """Pass llama.cpp's log by; restore the package's own logger afterwards."""
    import sys

    def on_line(level: int, line: str) -> None:
        buffers.read(line)
        if verbose:
            sys.stderr.write(line)

    log_to(on_line)
    try:
        yield
    finally:
        log_to(None)
        if not verbose:
            # What it says of a step that failed or was stopped, the engine raises.
            llama_cpp._logger.logger.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def loading(
    load: Callable[[Any], int] | None,
    *,
    progress: Callable[[float], bool],
    flash_attention: str,
    repack: bool,
    buffers: Buffers,
    verbose: bool,
) -> Iterator[None]:
    """Route `Llama`'s loading through `load(params) -> llama_model address` (None: as ever).

    progress: for a load as ever; called with a fraction, and returning False cancels.
    """
    if flash_attention not in FLASH_ATTENTION:
        raise InputError(f"flash attention is 'auto', 'on' or 'off', not '{flash_attention}'")
    if repack:
        amx.refuse_broken()
    stock_load, stock_init = _low.llama_model_load_from_file, _low.llama_init_from_model

    def load_model(path: bytes, params: Any) -> Any:
        params.use_extra_bufts = repack
        if load is not None:
            return load(params)
        report = _low.llama_progress_callback(lambda fraction, _: progress(fraction))
        params.progress_callback = report
        return stock_load(path, params)

    def init_context(model: Any, params: Any) -> Any:
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        return stock_init(model, params)

    with _lock, listening(buffers, verbose):
        _low.llama_model_load_from_file = load_model
        _low.llama_init_from_model = init_context
        try:
            yield
        finally:
            _low.llama_model_load_from_file = stock_load
            _low.llama_init_from_model = stock_init
