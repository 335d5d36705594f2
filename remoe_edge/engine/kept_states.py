"""Conversations' states in a folder, so that a next turn computes only what is new after a restart, too.

A file is a line of JSON, the tokens, and llama.cpp's state of one sequence. Its folder says for which
model, routers and settings it was made. A file that is damaged is left out, with a note of one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from remoe_edge.engine import lossy
from remoe_edge.errors import RemoeError
from remoe_edge.files.atomic import replacing
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.native import _core, llama_cpp

if TYPE_CHECKING:
    from remoe_edge.engine.settings import EngineSettings

_low = llama_cpp.llama_cpp

LEAST_TOKENS = 64  # fewer are computed sooner than read
_VERSION = 1
_SUFFIX = ".state"
_LONGEST_HEADER = 4096


def state_key(model: Path, settings: EngineSettings, n_ctx: int) -> str:
    """Name what the bits of a state depend on: model, routers, and how all its tokens are computed."""
    from remoe_edge.files.fingerprint import fingerprint

    digest = hashlib.blake2b(digest_size=16)
    for file in (model, lossy.coarse_path(model, settings)):
        if file is not None:
            digest.update(fingerprint(_core.ModelFile.open(str(file))).encode())
    routers = b"" if settings.routers is None else Path(settings.routers).read_bytes()
    digest.update(hashlib.blake2b(routers).digest())
    names = (
        "n_batch", "n_ubatch", "n_cores", "flash_attention", "repack", "stream", "gpu_layers",
        "experts_on",
    )  # fmt: skip
    facts = [llama_cpp.__version__, n_ctx, *(getattr(settings, name) for name in names)]
    facts.append(lossy.means_of(settings))  # no answer without loss goes on from one with it
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Kept:
    """Hold what a file has: a conversation's tokens, the last prompt's among them."""

    path: Path
    tokens: list[int]
    n_prompt: int
    n_bytes: int


@dataclass(frozen=True)
class _Head:
    """Hold the first line of a file."""

    n_tokens: int
    n_prompt: int
    state_bytes: int
    digest: str

    @classmethod
    def read(cls, file: BinaryIO) -> _Head:
        """Read it; the file is as long as it says. Raises ValueError, OSError."""
        line = file.readline(_LONGEST_HEADER)
        if not line.endswith(b"\n"):
            raise ValueError("it is cut short")
        try:
            held = json_object(line)
        except ValueError:
            raise ValueError("it is no state of a conversation") from None
        if held.get("version") != _VERSION:
            raise ValueError("it is of another version")
        named = [held.get(name) for name in ("n_tokens", "n_prompt", "state_bytes")]
        sizes = [each for each in named if isinstance(each, int) and each >= 0]
        if len(sizes) < len(named) or any(isinstance(each, bool) for each in sizes):
            raise ValueError("its sizes are no numbers")
        n_tokens, n_prompt, state_bytes = sizes
        whole = len(line) + 4 * n_tokens + state_bytes == os.fstat(file.fileno()).st_size
        if not whole or n_prompt > n_tokens:
            raise ValueError("it is cut short")
        return cls(n_tokens, n_prompt, state_bytes, str(held.get("digest")))


class KeptStates:
    """Keep states of one engine's context. One thread.

    folder: is made where it is missing. key: names model, routers and settings. most_bytes: of all files
    in the folder; the longest unused go first. note: takes a line for the user.
    """

    def __init__(
        self, llama: Any, folder: Path, key: str, most_bytes: int, note: Callable[[str], None]
    ) -> None:
        self._llama, self._most_bytes, self._note = llama, most_bytes, note
        self._root, self._folder = folder, folder / key
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RemoeError(f"{folder}: states cannot be kept there: {error.strerror}") from error
        self._kept: dict[Path, Kept] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            found = self._read_head(path)
            if found is not None:
                self._kept[path] = found

    @property
    def kept(self) -> list[Kept]:
        """List what there is."""
        return list(self._kept.values())

    def save(self, place: int, tokens: Sequence[int], n_prompt: int) -> None:
        """Write the state of a place. Whatever goes wrong is a note: the answer does not need it."""
        if len(tokens) < LEAST_TOKENS:
            return
        n_bytes = int(_low.llama_state_seq_get_size(self._llama.ctx, place))
        if n_bytes > self._most_bytes:
            return
        state = np.empty(n_bytes, np.uint8)
        written = _low.llama_state_seq_get_data(self._llama.ctx, _bytes(state), n_bytes, place)
        if written != n_bytes:
            return
        words = np.array(tokens, "<i4").tobytes()
        digest = hashlib.blake2b(words)
        digest.update(state.data)
        head = {
            "version": _VERSION, "n_tokens": len(tokens), "n_prompt": n_prompt,
            "state_bytes": n_bytes, "digest": digest.hexdigest(),
        }  # fmt: skip
        path = self._folder / f"{hashlib.blake2b(words, digest_size=16).hexdigest()}{_SUFFIX}"
        try:
            with replacing([path]) as (partial,), partial.open("wb") as file:
                file.write(json.dumps(head).encode() + b"\n")
                file.write(words)
                file.write(state.data)
            self._kept[path] = Kept(path, list(tokens), n_prompt, path.stat().st_size)
            self._bound(path)
        except (OSError, RemoeError) as error:
            self._note(f"a conversation's state was not kept: {error}")

    def load(self, kept: Kept, place: int) -> bool:
        """Put a state into a place, which is empty; return whether it is there now."""
        try:
            with open_regular(kept.path, "state") as file:
                head = _Head.read(file)
                words = file.read(4 * head.n_tokens)
                state = np.frombuffer(file.read(head.state_bytes), np.uint8)
        except (OSError, RemoeError, ValueError) as error:
            return self._drop(kept.path, str(error))
        digest = hashlib.blake2b(words)
        digest.update(state.data)
        if digest.hexdigest() != head.digest or len(state) != head.state_bytes:
            return self._drop(kept.path, "it is damaged")
        if np.frombuffer(words, "<i4").tolist() != kept.tokens:
            return self._drop(kept.path, "it was replaced by another conversation's")
        if not _low.llama_state_seq_set_data(self._llama.ctx, _bytes(state), len(state), place):
            return self._drop(kept.path, "llama.cpp does not take it")
        memory = _low.llama_get_memory(self._llama.ctx)
        if _low.llama_memory_seq_pos_max(memory, place) + 1 != head.n_tokens:
            return self._drop(kept.path, "its state is not that of its tokens")
        with contextlib.suppress(
            OSError
        ):  # where nothing may be written it can be read all the same
            os.utime(kept.path)
        return True

    def _read_head(self, path: Path) -> Kept | None:
        try:
            with open_regular(path, "state") as file:
                head = _Head.read(file)
                words = np.frombuffer(file.read(4 * head.n_tokens), "<i4").tolist()
                n_bytes = os.fstat(file.fileno()).st_size
        except (OSError, RemoeError, ValueError) as error:
            self._drop(path, str(error))
            return None
        return Kept(path, words, head.n_prompt, n_bytes)

    def _drop(self, path: Path, why: str) -> bool:
        self._kept.pop(path, None)
        self._note(f"{path} is not used: {why}")
        return False

    def _bound(self, newest: Path) -> None:
        """Remove the longest unused files of the whole folder until it is small enough."""
        found = []
        for path in self._root.glob(f"*/*{_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((path == newest, status.st_mtime_ns, status.st_size, path))
        total = sum(n_bytes for _, _, n_bytes, _ in found)
        for _, _, n_bytes, path in sorted(found):
            if total <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            self._kept.pop(path, None)
            total -= n_bytes


def _bytes(array: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
