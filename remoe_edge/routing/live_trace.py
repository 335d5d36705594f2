"""Record a trace while an engine runs: which experts every step of every layer was routed to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import (
    errors_naming,
    refuse_to_replace_device,
    refuse_to_replace_model,
)
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel


@dataclass(frozen=True)
class TraceFile:
    """Name the file of a trace for an engine, which opens it; it takes its name when it is closed."""

    path: Path

    def open(self, model: Path, native: StreamedModel) -> LiveTrace:
        """Begin to record. Raises InputError where there can be no such file."""
        path = self.path
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"cannot record into {path}: give the path of a file")
        refuse_to_replace_model(path)
        refuse_to_replace_device(path)
        meta = {"model": model.name, "expert_bytes": native.expert_bytes / native.total_experts}
        real = os.path.realpath(path)
        claim = _claim(f"{real}.part")
        try:
            native.start_trace(
                real, fingerprint(_core.ModelFile.open(str(model))), json.dumps(meta)
            )
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{real}.part")
            os.close(claim)
            raise
        return LiveTrace(native, claim)


def _claim(part: str) -> int:
    """Lock the file that a recording grows in, so that no other one writes into it; give the lock.

    Raises InputError where another recording has it, ReadError where it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        with errors_naming(Path(part)):
            claim = os.open(part, flags, 0o644)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            whole = part.removesuffix(".part")
            raise InputError(
                f"{whole} is being recorded by another engine; give another output"
            ) from None
        except OSError:  # a file system without locks
            return claim
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(claim), os.stat(part)):
                return claim
        os.close(claim)  # it has become that recording's whole file in between


class LiveTrace:
    """A trace that is being recorded by the native model. claim: the lock on its file, which it owns."""

    def __init__(self, native: StreamedModel, claim: int) -> None:
        self._native = native
        self._unclaim = weakref.finalize(self, os.close, claim)

    def close(self) -> None:
        """End the recording. Raises ReadError where the file could not be written to its end."""
        try:
            self._native.stop_trace()
        finally:
            self._unclaim()
