"""Keep a model's profile between runs: what was fitted to it, and which of its experts are hot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError, ModelError
from remoe_edge.files.reading import json_object
from remoe_edge.files.taking_turns import taking_turns
from remoe_edge.native import _core
from remoe_edge.profile import read_profile, save_profile

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel

HALF_LIFE = 1000  # steps after which what was hot before counts half


@dataclass(frozen=True)
class ProfileFile:
    """Name the file of a profile for an engine, which opens it."""

    path: Path

    def open(self, model: Path, native: StreamedModel) -> KeptProfile:
        """Open it for a model. Raises as `KeptProfile`."""
        return KeptProfile(self.path, model)


class KeptProfile:
    """Hold a profile file while an engine runs. Several may keep one: each adds what it has used.

    Reads `path` if it is there. Raises ModelError where it is damaged, InputError where it cannot be
    read or is of another model, naming both.
    """

    def __init__(self, path: Path, model: Path) -> None:
        from remoe_edge.files.fingerprint import fingerprint

        self.path = path
        self.data: bytes | None = None
        self._parts: dict[str, Any] = {}
        file = _core.ModelFile.open(str(model))
        layers = file.expert_layers
        self._shape = len(layers), max((layer.n_experts for layer in layers), default=0)
        self._fingerprint = fingerprint(file)
        self._model = model.name
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{path} cannot be a profile: give the path of a file")
        self._read()

    def _read(self) -> None:
        if self.path.exists():
            self.data = read_profile(self.path)
            self._parts = _core.parse_profile(self.data, str(self.path))
            self._check()

    def _check(self) -> None:
        own, shape = self._parts["fingerprint"], (self._parts["n_layers"], self._parts["n_experts"])
        # Weights alone serve any model.
        if shape == (0, 0):
            return
        if own and own != self._fingerprint:
            name = _meta(self._parts).get("model") or "another model"
            raise ModelError(
                f"{self.path} is a profile of {name}, not of {self._model}: give each model its own"
            )
        if shape != self._shape:
            raise ModelError(
                f"{self.path} is a profile of a model with {shape[0]} layers of {shape[1]} experts, and "
                f"{self._model} has {self._shape[0]} of {self._shape[1]}: give each model its own"
            )

    def hot(self) -> npt.NDArray[np.int64]:
        """List the experts that were used in past runs, the most used first."""
        uses = self._parts.get("uses", np.zeros(0, np.float32))
        order = np.argsort(-uses, kind="stable")
        return order[: int(np.count_nonzero(uses))].astype(np.int64)

    def save(self, uses: npt.NDArray[Any], n_steps: float, n_layers: int, n_experts: int) -> None:
        """Add a run's uses, [n_layers * n_experts], to what the file holds by now.

        It is written anew, whole or not at all. Raises as it was opened, ModelError where one is no
        number, and InputError where the file cannot be written; the file is then as it was.
        """
        with taking_turns(self.path):
            self._read()
            save_profile(self._with(uses, n_steps, n_layers, n_experts), self.path)

    def _with(self, uses: npt.NDArray[Any], n_steps: float, n_layers: int, n_experts: int) -> bytes:
        parts = self._parts
        before = parts.get("uses", np.zeros(0, np.float32))
        total = uses.astype(np.float32)
        if len(before):
            total = total + before * np.float32(0.5 ** (n_steps / HALF_LIFE))
        meta = json.dumps({**_meta(parts), "model": self._model})
        return _made(parts, total, (n_layers, n_experts), self._fingerprint, meta)


def renew(data: bytes, path: Path, shape: tuple[int, int]) -> tuple[bytes, int]:
    """Save a newly fitted profile of a model of `shape`: its layers, and the experts in each.

    What engines counted in a profile of the same model at `path` goes on in the new one. Gives what was
    written, and how many experts in it were used. Raises InputError where the file cannot be written.
    """
    with taking_turns(path):
        fitted, uses = _core.parse_profile(data, "the new profile"), np.zeros(0, np.float32)
        try:
            old = _core.parse_profile(read_profile(path), str(path))
        except (InputError, ModelError):  # none is there, or none that an engine could go on with
            old = None
        if old is not None and (old["n_layers"], old["n_experts"]) == shape:
            known = {old["fingerprint"], fitted["fingerprint"]} - {""}
            if len(known) <= 1 and len(old["uses"]):
                uses = old["uses"]
                data = _made(fitted, uses, shape, next(iter(known), ""), fitted["meta"])
        save_profile(data, path)
    return data, int(np.count_nonzero(uses))


def _made(
    parts: dict[str, Any],
    uses: npt.NDArray[Any],
    shape: tuple[int, int],
    fingerprint: str,
    meta: str,
) -> bytes:
    """Make a profile of what was fitted in `parts`, which may have none of it, and of `uses`."""
    nothing = np.zeros(0, np.float32)
    return _core.make_profile(
        *shape, fingerprint, meta, parts.get("shares", nothing), parts.get("weights", nothing),
        parts.get("scales", nothing), parts.get("links", np.zeros(0, np.int8)), uses,
    )  # fmt: skip


def _meta(parts: dict[str, Any]) -> dict[str, Any]:
    return json_object(parts.get("meta", "{}"))
