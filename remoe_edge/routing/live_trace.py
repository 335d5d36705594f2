"""Record a trace while an engine runs: which experts every step of every layer was routed to."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import refuse_to_replace_device, refuse_to_replace_model
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
        native.start_trace(
            os.path.realpath(path), fingerprint(_core.ModelFile.open(str(model))), json.dumps(meta)
        )
        return LiveTrace(native)


class LiveTrace:
    """A trace that is being recorded by the native model."""

    def __init__(self, native: StreamedModel) -> None:
        self._native = native

    def close(self) -> None:
        """End the recording. Raises ReadError where the file could not be written to its end."""
        self._native.stop_trace()
