"""What is deployed, as a file: where Ray is, which functions there are, and by which plan and prices.

`remoe-edge deploy` writes it, and everything else finds a deployment by it. It lies in a folder of this
user alone, beside the token of a Ray that was started here.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remoe_edge.deploy.packing import Function
from remoe_edge.errors import InputError
from remoe_edge.files.atomic import write_text
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.native import _core
from remoe_edge.placement import placement_file
from remoe_edge.placement.planner import Placement

VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Ray:
    """Hold where Ray is.

    address: as `ray.init` takes it. token: the file of its token, None where the environment has one.
    pid, started: of the Ray that was started here, and when by the kernel's clock; 0 for any other.
    """

    address: str
    token: str | None = None
    pid: int = 0
    started: int = 0
    folder: str | None = None


@dataclass(frozen=True)
class Deployment:
    """Hold one deployment."""

    name: str
    model: str
    fingerprint: str
    ray: Ray
    functions: tuple[Function, ...]
    placement: Placement
    main_threads: int

    @property
    def apps(self) -> dict[str, str]:
        """Name the Serve application of each function."""
        return {each.name: f"remoe-edge.{self.name}.{each.name}" for each in self.functions}

    @property
    def cache_bytes(self) -> int:
        """Give the main host's cache: as many experts as the placement keeps there."""
        shape = self.placement.request.shape
        return sum(len(layer) for layer in self.placement.local) * shape.expert_bytes


def check_name(text: str) -> str:
    """Return a deployment's name. Raises InputError for what is none."""
    if not _NAME.fullmatch(text):
        raise InputError(f"'{text}' is no name of a deployment: letters, digits, '.', '_' and '-'")
    return text


def path_of(folder: Path, name: str) -> Path:
    """Say where a deployment's record lies."""
    return folder / f"{check_name(name)}.deployment.json"


def save(deployment: Deployment, path: Path) -> None:
    """Write the record, whole or not at all. Raises ReadError where it cannot be written."""
    held = {
        "version": VERSION,
        **{each: getattr(deployment, each) for each in ("name", "model", "fingerprint")},
        "ray": asdict(deployment.ray),
        "functions": [asdict(each) for each in deployment.functions],
        "placement": placement_file.as_dict(deployment.placement),
        "main_threads": deployment.main_threads,
    }
    write_text(json.dumps(held, allow_nan=False) + "\n", path)


def load(path: Path) -> Deployment:
    """Read a record. Raises InputError, which names the file."""
    with open_regular(path, "deployment") as file:
        try:
            return _read(json_object(file.read()))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, OSError) as error:
            what = "is missing" if isinstance(error, KeyError) else ""
            raise InputError(f"{path}: no deployment: {error} {what}".rstrip()) from error


def load_for(path: Path, model: Path) -> Deployment:
    """Read a record, which must be of this model. Raises InputError."""
    found = load(path)
    own = fingerprint(_core.ModelFile.open(str(model)))
    if found.fingerprint != own:
        raise InputError(
            f"{found.name} is deployed for {Path(found.model).name}, not for {model.name}"
        )
    return found


def find(folder: Path, name: str | None = None) -> Path:
    """Find a record by its name or path; without one, the only one there is. Raises InputError."""
    if name is not None:
        known = folder / f"{name}.deployment.json"
        path = known if known.is_file() else Path(name)
        if not path.is_file():
            raise InputError(
                f"there is no deployment {name}: `remoe-edge deploy status` lists them"
            )
        return path
    there = everything(folder)
    if len(there) != 1:
        names = ", ".join(_name(path) for path in there)
        raise InputError(
            f"several deployments are there ({names}): name one"
            if there
            else "nothing is deployed: remoe-edge deploy MODEL --slo tpot=250ms,ttft=3s"
        )
    return there[0]


def everything(folder: Path) -> list[Path]:
    """List the records."""
    return sorted(folder.glob("*.deployment.json"))


def _name(path: Path) -> str:
    return path.name.removesuffix(".deployment.json")


def _read(held: dict[str, Any]) -> Deployment:
    if type(held.get("version")) is not int or held["version"] != VERSION:
        raise InputError(f"a deployment of version {held.get('version')!r}, this reads {VERSION}")
    placement = placement_file.from_dict(held["placement"])
    shape = placement.request.shape
    functions = tuple(_function(each) for each in held["functions"])
    for each in functions:
        if not all(0 <= expert < shape.n_layers * shape.n_experts for expert in each.experts):
            raise InputError(f"function {each.name} has experts that the model does not")
    if len({each.name for each in functions}) != len(functions):
        raise InputError("two functions have one name")
    return Deployment(
        check_name(_text(held["name"])), _text(held["model"]), _text(held["fingerprint"]),
        _ray(held["ray"]), functions, placement, _whole(held["main_threads"], 1),
    )  # fmt: skip


def _function(held: dict[str, Any]) -> Function:
    rows = held["rows"]
    if isinstance(rows, bool) or not isinstance(rows, int | float) or not 0 <= rows < 1e300:
        raise ValueError(f"{rows!r} is no number of rows")
    return Function(
        check_name(_text(held["name"])), tuple(_whole(each) for each in held["experts"]),
        _whole(held["memory_bytes"]), _whole(held["replicas"], 1), _whole(held["threads"], 1),
        float(rows),
    )  # fmt: skip


def _ray(held: dict[str, Any]) -> Ray:
    token, folder = held["token"], held["folder"]
    return Ray(
        _text(held["address"]), None if token is None else _text(token), _whole(held["pid"]),
        _whole(held["started"]), None if folder is None else _text(folder),
    )  # fmt: skip


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is no text")
    return value


def _whole(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 1 << 62:
        raise ValueError(f"{value!r} is no whole number, {least} or more")
    return value
