"""Price tables: what memory, time, requests and traffic cost, and which sizes can be had.

A table is a JSON file with a version of its own; docs/placement.md lists its fields. GB·s are counted
in the table's own GB. `per_call` functions are billed for the time of each call, `lifetime` functions
from their start until they stop.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.files.reading import json_object, open_regular

VERSION = 1
PER_CALL, LIFETIME = "per_call", "lifetime"
_FOLDER = Path(__file__).parent / "prices"


@dataclass(frozen=True)
class MainPrice:
    """Hold the main host's prices per GB·s, apart for CPU memory and GPU memory, and its sizes."""

    cpu_gb_s: float
    gpu_gb_s: float
    step_bytes: int
    max_bytes: int

    def rounded(self, n_bytes: int) -> int:
        """Round memory up to whole steps."""
        return -(-n_bytes // self.step_bytes) * self.step_bytes

    def size(self, n_bytes: int) -> int:
        """Round memory up to a size that can be had. Raises InputError where there is none."""
        found = self.rounded(n_bytes)
        if found > self.max_bytes:
            raise InputError(
                f"the main host needs {n_bytes} bytes; the largest in the price table has "
                f"{self.max_bytes}"
            )
        return found


@dataclass(frozen=True)
class FunctionPrice:
    """Hold a function's prices and what the platform allows.

    idle_gb_s: kept waiting, per GB·s (`per_call` only; a lifetime includes it). request: a call.
    granularity_ms: times round up to it; minimum_ms: the least billed of a call. cold_start_billed:
    starting counts as running. payload_bytes: the most that one call carries, 0 for no limit.
    vcpu_bytes: memory that comes with one processor. vcpu_steps: where processors come in steps
    instead, pairs of (bytes from which, processors). max_vcpus: no size has more.
    """

    gb_s: float
    idle_gb_s: float
    request: float
    billing: str
    granularity_ms: float
    minimum_ms: float
    cold_start_billed: bool
    payload_bytes: int
    min_bytes: int
    step_bytes: int
    max_bytes: int
    vcpu_bytes: int
    max_vcpus: float
    vcpu_steps: tuple[tuple[int, float], ...] = ()

    @property
    def proportional(self) -> bool:
        """Say whether processors come in proportion to memory."""
        return not self.vcpu_steps

    def vcpus(self, n_bytes: float) -> float:
        """Give the processors that come with a size."""
        if self.proportional:
            return min(self.max_vcpus, n_bytes / self.vcpu_bytes)
        found = self.vcpu_steps[0][1]
        for start, n in self.vcpu_steps:
            if n_bytes >= start:
                found = n
        return min(self.max_vcpus, found)

    def sizes(self, least_bytes: float = 0) -> range:
        """List the sizes that hold `least_bytes`; empty where none does."""
        wanted = max(self.min_bytes, math.ceil(least_bytes))
        first = self.min_bytes + -(-(wanted - self.min_bytes) // self.step_bytes) * self.step_bytes
        return range(first, self.max_bytes + 1, self.step_bytes)

    def billed_ms(self, ms: float) -> float:
        """Round a call's time as the bill does."""
        ms = max(ms, self.minimum_ms)
        if self.granularity_ms <= 0:
            return ms
        return math.ceil(ms / self.granularity_ms - 1e-9) * self.granularity_ms


@dataclass(frozen=True)
class PriceTable:
    """Hold a whole table. `egress_gb`: traffic that leaves a function, per GB."""

    name: str
    source: str
    currency: str
    gb_bytes: int
    egress_gb: float
    main: MainPrice
    function: FunctionPrice

    def without_fee(self) -> PriceTable:
        """Give the same table without the fee for each call."""
        held = self.as_dict()
        held["function"]["request"] = 0.0
        held["name"] = f"{self.name}, no fee per call"
        return from_dict(held)

    def as_dict(self) -> dict[str, Any]:
        """Write it as plain values."""
        held = {"version": VERSION, **asdict(self)}
        held["function"]["vcpu_steps"] = [list(step) for step in self.function.vcpu_steps]
        return held


# Field by field: what it must be. A number is 0 or more; `positive` is above 0.
_TABLE = {"name": "text", "source": "text", "currency": "text", "gb_bytes": "positive int",
          "egress_gb": "number"}  # fmt: skip
_MAIN = {"cpu_gb_s": "number", "gpu_gb_s": "number", "step_bytes": "positive int",
         "max_bytes": "positive int"}  # fmt: skip
_FUNCTION = {
    "gb_s": "number", "idle_gb_s": "number", "request": "number", "billing": "billing",
    "granularity_ms": "number", "minimum_ms": "number", "cold_start_billed": "flag",
    "payload_bytes": "int", "min_bytes": "positive int", "step_bytes": "positive int",
    "max_bytes": "positive int", "vcpu_bytes": "positive int", "max_vcpus": "positive",
    "vcpu_steps": "steps",
}  # fmt: skip


def load(name: str | Path) -> PriceTable:
    """Read a table: one that comes along, by its name, or a file. Raises InputError, in one line."""
    shipped = {path.stem: path for path in sorted(_FOLDER.glob("*.json"))}
    path = shipped.get(str(name), Path(name))
    if not path.exists():
        raise InputError(f"no price table at {name}; these come along: {', '.join(shipped)}")
    with open_regular(path, "price table") as file:
        try:
            return from_dict(json_object(file.read()))
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: no price table: {error}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def shipped() -> list[str]:
    """Name the tables that come along."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def from_dict(held: dict[str, Any]) -> PriceTable:
    """Check a table's fields and make it. Raises InputError naming the field."""
    if type(held.get("version")) is not int or held["version"] != VERSION:
        raise InputError(f"a price table of version {held.get('version')!r}, this reads {VERSION}")
    steps = {"vcpu_steps": [], **_section(held, "function")}
    main = _checked("main.", _section(held, "main"), _MAIN)
    function = _checked("function.", steps, _FUNCTION)
    plain = {name: value for name, value in held.items() if name not in ("main", "function")}
    plain.pop("version")
    table = _checked("", plain, _TABLE)
    function["vcpu_steps"] = tuple((int(at), float(n)) for at, n in function["vcpu_steps"])
    if function["min_bytes"] > function["max_bytes"]:
        raise InputError("function.min_bytes is more than function.max_bytes")
    return PriceTable(**table, main=MainPrice(**main), function=FunctionPrice(**function))


def _section(held: dict[str, Any], name: str) -> dict[str, Any]:
    found = held.get(name)
    if not isinstance(found, dict):
        raise InputError(f"`{name}` is missing, or no object")
    return found


def _checked(prefix: str, held: dict[str, Any], wanted: dict[str, str]) -> dict[str, Any]:
    for name in wanted:
        if name not in held:
            raise InputError(f"`{prefix}{name}` is missing")
    for name, value in held.items():
        if name not in wanted:
            raise InputError(f"`{prefix}{name}` is nothing that a price table has")
        if not _IS[wanted[name]](value):
            shown = json.dumps(value, ensure_ascii=False)[:40]
            raise InputError(f"`{prefix}{name}` is {shown}; it must be {_SAID[wanted[name]]}")
    return dict(held)


def _number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    # A NaN fails, and what is so small that dividing by it gives infinity.
    return plain and (value == 0 or 1e-30 < value < 1e30)


def _int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _steps(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if not all(isinstance(s, list) and len(s) == 2 and _int(s[0]) and _number(s[1]) for s in value):
        return False
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(value))
    return rising and all(s[1] > 0 for s in value)


_IS = {
    "text": lambda value: isinstance(value, str) and bool(value.strip()),
    "number": _number,
    "positive": lambda value: _number(value) and value > 0,
    "int": _int,
    "positive int": lambda value: _int(value) and value > 0,
    "flag": lambda value: isinstance(value, bool),
    "billing": lambda value: value in (PER_CALL, LIFETIME),
    "steps": _steps,
}
_SAID = {
    "text": "a text",
    "number": "a number, 0 or more",
    "positive": "a number above 0",
    "int": "a whole number, 0 or more",
    "positive int": "a whole number above 0",
    "flag": "true or false",
    "billing": f"{PER_CALL} or {LIFETIME}",
    "steps": "a list of [bytes, processors], both rising",
}
