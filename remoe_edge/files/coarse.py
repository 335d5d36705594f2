"""Coarse files: a model's experts once more, in types that take fewer bytes (docs/quality.md).

Such a file is a GGUF with the experts' tensors of one model alone, under their own names. Its keys say
which model they were made from, and what they are, so that a damaged or foreign file is refused before
anything is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError, ModelError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.models import COARSE_SUFFIX
from remoe_edge.files.own_gguf import open_own
from remoe_edge.native import _core

FORMAT_VERSION = 1
PREFIX = "remoe_edge.coarse"


@dataclass(frozen=True)
class CoarseRecord:
    """Hold what a coarse file says of itself; own: the fingerprint of its tensors."""

    type: str
    base_fingerprint: str
    base_name: str
    own: str


def beside(model: Path) -> Path:
    """Say where a model's coarse file lies unless it is named."""
    return model.with_name(model.name.removesuffix(".gguf") + COARSE_SUFFIX)


def command_for(model: Path, path: Path | None = None) -> str:
    """Write the command that makes a model's coarse file."""
    return f"`remoe-edge convert coarse {model} -o {path or beside(model)}`"


def read_record(path: Path) -> CoarseRecord:
    """Return a coarse file's record. Raises InputError or ModelError for any other or a damaged one."""
    file = open_own(
        path, PREFIX, FORMAT_VERSION, what="a file of coarse experts",
        otherwise="no file of coarse experts: `remoe-edge convert coarse` makes one",
    )  # fmt: skip
    record = CoarseRecord(
        type=file.string(f"{PREFIX}.type") or "",
        base_fingerprint=file.string(f"{PREFIX}.base_fingerprint") or "",
        base_name=file.string(f"{PREFIX}.base_name") or "",
        own=file.string(f"{PREFIX}.fingerprint") or "",
    )
    if record.own != fingerprint(file):
        raise ModelError(f"{path} is damaged: its experts are not those that it was written with")
    return record


def check(path: Path, model: _core.ModelFile) -> CoarseRecord:
    """Return the record of a coarse file that was made from `model`. Raises InputError for another's."""
    where = Path(model.paths[0])
    if not path.is_file():
        raise InputError(f"no coarse experts at {path}: {command_for(where, path)} makes them")
    record = read_record(path)
    if record.base_fingerprint != fingerprint(model):
        raise InputError(
            f"{path} was made from another model ('{record.base_name}') than {where}: "
            f"{command_for(where, path)} makes it anew"
        )
    return record
