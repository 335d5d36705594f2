"""Give llama-cpp-python's `Llama` a model that the native core has loaded.

`Llama` brings tokenising, chat templates, sampling and grammars; it only knows how to load a whole file.
Its constructor makes a model and a context by the names `internals.LlamaModel` and
`internals.LlamaContext`. `make_llama` runs that constructor with a name `internals` of its own, in which
the two are ours. Nothing of the package is changed, so a plain `Llama` made meanwhile, in whatever
thread, is what it always was. The package is pinned, so the names are known to be there.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from remoe_edge import amx
from remoe_edge.engine import metadata
from remoe_edge.engine.llama_log import log_of_this_thread_to
from remoe_edge.native import llama_cpp

_low = llama_cpp.llama_cpp
_internals = llama_cpp.llama.internals
_loading = threading.RLock()  # llama.cpp's log has one listener, and the core's errors come by it

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_MOST_ERRORS = 4  # what follows repeats it
_LONGEST = 2000  # characters of a line; those that tell anything have some dozens
_BUFFER = re.compile(r"(\S+) +(KV|compute|output|model|RS) buffer size *= *([\d.]+) MiB")


class FilePath(str):
    """A path for `Llama`, which asks for its UTF-8 and gets the bytes that the kernel has."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return the path as the file system spells it."""
        return os.fsencode(str(self))  # fsencode itself asks a str for its encode()


@dataclass
class Buffers:
    """Hold what llama.cpp says it reserved, in bytes by kind ("KV", "compute", ...), and its errors.

    elsewhere: the devices whose memory is not this machine's; theirs is kept apart, in gpu_bytes.
    """

    n_bytes: dict[str, int] = field(default_factory=dict)
    gpu_bytes: dict[str, int] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    errors: list[str] = field(default_factory=list)

    def read(self, level: int, line: str) -> None:
        """Take in one line of llama.cpp's log."""
        if len(line) > _LONGEST:  # a value of the file, which the pattern looks at for minutes
            return
        said = line.strip()
        if level == _ERROR and said and len(self.errors) < _MOST_ERRORS:
            self.errors.append(" ".join(said.split()))
        for device, kind, mebibytes in _BUFFER.findall(line):
            if device == "Storage":  # addresses without memory
                continue
            kept = self.gpu_bytes if device in self.elsewhere else self.n_bytes
            kept[kind] = kept.get(kind, 0) + int(float(mebibytes) * 2**20)


@contextlib.contextmanager
def listening(buffers: Buffers, verbose: bool) -> Iterator[None]:
    """Take what this thread's calls log into `buffers`; restore the package's logger afterwards."""

    def on_line(level: int, line: str) -> None:
        buffers.read(level, line)
        if verbose:
            sys.stderr.write(line)

    with _loading, log_of_this_thread_to(on_line):
        yield
    if not verbose:
        # What it says of a step that failed or was stopped, the engine raises.
        llama_cpp._logger.logger.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class NativeLoad:
    """Hold how the core loads a model: `load(params)` returns the address of the `llama_model`.

    owner: the native model, which has to outlive it: its buffers lead back there.
    """

    load: Callable[[Any], int]
    owner: object


class _StreamedModel(_internals.LlamaModel):  # type: ignore[name-defined, misc]
    """A `LlamaModel` around a `llama_model` that the core has loaded; frees it as the base does."""

    def __init__(self, native: NativeLoad, path: str, params: Any, verbose: bool) -> None:
        self.path_model, self.params, self.verbose = path, params, verbose
        self._exit_stack = ExitStack()
        self.sampler = None
        self.custom_samplers: list[Any] = []
        self._native: NativeLoad | None = native
        self.model: int | None = native.load(params)
        self.vocab = _low.llama_model_get_vocab(self.model)
        self._exit_stack.callback(self._free)

    def _free(self) -> None:
        if self.model is not None:
            _low.llama_model_free(self.model)
            self.model = None
        self._native = None


def make_llama(
    native: NativeLoad | None,
    *,
    progress: Callable[[float], bool],
    flash_attention: str,
    repack: bool,
    gpu_layers: int,
    buffers: Buffers,
    verbose: bool,
    n_places: int = 1,
    n_step: int = 1,
    nextn: bool = False,
    **settings: Any,
) -> Any:
    """Make a `Llama`, of the core's model or (None) of a whole file.

    n_places: conversations in its context, each with `n_ctx` tokens of its own. n_step: tokens that a
    step may have which is no piece of a prompt: with a smaller `n_batch`, llama.cpp would end the process
    at such a step. progress: for a whole
    file; called with a fraction, and returning False cancels. gpu_layers: with 0, llama.cpp is told of
    no GPU at all: it would use one for long prompts, and round otherwise. nextn: load the layers that
    predict further tokens, too. settings: those of `Llama`
    itself. Raises what loading raises: ValueError or RuntimeError from llama_cpp, RemoeError.
    """
    settings["model_path"] = FilePath(settings["model_path"])
    if repack:
        amx.refuse_broken()
    report = _low.llama_progress_callback(lambda fraction, _: progress(fraction))
    no_device = (ctypes.c_void_p * 1)()  # the end of a list of devices

    def model(*, path_model: str, params: Any, verbose: bool) -> Any:
        params.use_extra_bufts = repack
        params.n_gpu_layers = gpu_layers
        params.load_mtp = nextn
        if gpu_layers == 0:
            params.devices = ctypes.addressof(no_device)
        if native is not None:
            return _StreamedModel(native, path_model, params, verbose)
        params.progress_callback = report
        return _internals.LlamaModel(path_model=path_model, params=params, verbose=verbose)

    def context(*, model: Any, params: Any, verbose: bool) -> Any:
        params.flash_attn_type = _FLASH_ATTENTION[flash_attention]
        # A copy: the package cuts prompts, and makes a table of its own, by what these say.
        params = type(params).from_buffer_copy(params)
        params.n_batch = max(params.n_batch, n_step)
        if n_places > 1:
            params.n_ctx *= n_places
            params.n_seq_max = n_places
            params.kv_unified = False  # so that no conversation's bits depend on another's place
        return _internals.LlamaContext(model=model, params=params, verbose=verbose)

    names = {**vars(_internals), "LlamaModel": model, "LlamaContext": context}
    made = metadata.Llama.__new__(metadata.Llama)
    with listening(buffers, verbose):
        _constructor(types.SimpleNamespace(**names))(made, verbose=verbose, **settings)
    return made


def _constructor(internals: types.SimpleNamespace) -> Callable[..., None]:
    """Give `Llama`'s constructor, for which the name `internals` means something else."""
    stock = llama_cpp.Llama.__init__
    bound = types.FunctionType(
        stock.__code__,
        {**stock.__globals__, "internals": internals},
        stock.__name__,
        stock.__defaults__,
        stock.__closure__,
    )
    bound.__kwdefaults__ = stock.__kwdefaults__
    return bound
