"""A placement as JSON: what a deployment carries out, versioned, and checked when it is read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import write_text
from remoe_edge.files.reading import json_object, open_regular
from remoe_edge.placement.bill import Bill
from remoe_edge.placement.functions import Group, Load
from remoe_edge.placement.planner import PlacedFunction, Placement
from remoe_edge.placement.pre_allocation import PreAllocation
from remoe_edge.placement.price import from_dict as price_table
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload
from remoe_edge.placement.times import Times

VERSION = 1
_PARTS = {"shape": Shape, "speed": Speed, "link": Link, "slo": Slo, "workload": Workload}


def as_dict(placement: Placement) -> dict[str, Any]:
    """Write a placement as plain values; bytes, milliseconds, the price table's money."""
    return {
        "version": VERSION,
        **{name: asdict(getattr(placement.request, name)) for name in _PARTS},
        "price": placement.table.as_dict(),
        "pre_allocation": asdict(placement.pre_allocation),
        "n_local": placement.n_local,
        "main_bytes": placement.main_bytes,
        "local": [list(experts) for experts in placement.local],
        "functions": [
            {
                "layer": each.group.layer,
                "experts": list(each.group.experts),
                "memory_bytes": each.memory_bytes,
                "replicas": each.replicas,
                "row_ms": each.row_ms,
                "prompt_rows": list(each.load.prompt_rows),
                "chance": each.load.chance,
                "rows": each.load.rows,
            }
            for each in placement.functions
        ],
        "times": asdict(placement.times),
        "bill": placement.bill.as_dict(),
        "all_local": {
            "times": asdict(placement.all_local_times),
            "bill": placement.all_local.as_dict(),
        },
        "pays": placement.pays,
        "method": placement.method,
        "notes": list(placement.notes),
    }


def from_dict(held: dict[str, Any]) -> Placement:
    """Read what `as_dict` wrote, and check that every expert has one place.

    Raises InputError naming what is wrong.
    """
    if not isinstance(held, dict):
        raise InputError(f"no placement: {held!r} is no object")
    if type(held.get("version")) is not int or held["version"] != VERSION:
        raise InputError(f"a placement of version {held.get('version')!r}, this reads {VERSION}")
    try:
        placement = _read(held)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = "is missing" if isinstance(error, KeyError) else ""
        raise InputError(f"no placement: {error} {what}".rstrip()) from error
    _check(placement)
    return placement


def _read(held: dict[str, Any]) -> Placement:
    allocated, alone = held["pre_allocation"], held["all_local"]
    return Placement(
        request=Request(**{name: kind(**held[name]) for name, kind in _PARTS.items()}),
        table=price_table(held["price"]),
        pre_allocation=PreAllocation(
            _whole(allocated["n_local"]),
            _whole(allocated["main_bytes"]),
            _times(allocated["worst"]),
        ),
        n_local=_whole(held["n_local"]),
        main_bytes=_whole(held["main_bytes"]),
        local=tuple(tuple(_whole(expert) for expert in experts) for experts in held["local"]),
        functions=tuple(_function(each) for each in held["functions"]),
        times=_times(held["times"]),
        bill=_bill(held["bill"]),
        all_local_times=_times(alone["times"]),
        all_local=_bill(alone["bill"]),
        method=str(held["method"]),
        notes=tuple(str(note) for note in held["notes"]),
    )


def _function(held: dict[str, Any]) -> PlacedFunction:
    load = Load(
        tuple(_number(rows) for rows in held["prompt_rows"]),
        _number(held["chance"]),
        _number(held["rows"]),
    )
    group = Group(_whole(held["layer"]), tuple(_whole(expert) for expert in held["experts"]))
    if len(load.prompt_rows) != len(group.experts):
        raise ValueError(f"a function of layer {group.layer} has not one number for each expert")
    return PlacedFunction(
        group, _whole(held["memory_bytes"]), _whole(held["replicas"]), _number(held["row_ms"]), load
    )


def _times(held: dict[str, Any]) -> Times:
    return Times(_number(held["ttft_ms"]), _number(held["tpot_ms"]))


def _bill(held: dict[str, Any]) -> Bill:
    names = asdict(Bill())
    return Bill(**{name: _number(held[name]) for name in names})


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no whole number, 0 or more")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise ValueError(f"{value!r} is no number, 0 or more")
    return float(value)


def _check(placement: Placement) -> None:
    """Raise InputError unless every expert has one place, and fits there."""
    shape = placement.request.shape
    if len(placement.local) != shape.n_layers:
        raise InputError(f"{len(placement.local)} layers are placed of {shape.n_layers}")
    places: Counter[tuple[int, int]] = Counter()  # not as large as the shape claims to be
    groups = [*enumerate(placement.local)]
    for each in placement.functions:
        where = f"a function of layer {each.group.layer}"
        if each.group.layer >= shape.n_layers or not each.group.experts:
            raise InputError(f"{where} of {shape.n_layers} holds {len(each.group.experts)} experts")
        if each.replicas < 1:
            raise InputError(f"{where} has no replica")
        if each.memory_bytes < each.group.bytes(shape, 0):
            raise InputError(f"{where} has {each.memory_bytes} bytes, too few for its experts")
        groups.append((each.group.layer, each.group.experts))
    for layer, experts in groups:
        for expert in experts:
            if expert >= shape.n_experts:
                raise InputError(f"expert {expert} of {shape.n_experts} in layer {layer}")
            places[layer, expert] += 1
    for layer in range(shape.n_layers):
        for expert in range(shape.n_experts):
            if (n := places[layer, expert]) != 1:
                raise InputError(f"expert {expert} of layer {layer} has {n} places, not one")
    least = shape.fixed_bytes + shape.expert_bytes * sum(len(each) for each in placement.local)
    if placement.main_bytes < least:
        raise InputError(f"the main host has {placement.main_bytes} bytes and needs {least}")


def save(placement: Placement, path: str | Path) -> None:
    """Write a placement, whole or not at all. Raises ReadError where it cannot be written."""
    write_text(json.dumps(as_dict(placement), allow_nan=False) + "\n", Path(path))


def load(path: str | Path) -> Placement:
    """Read a placement. Raises InputError, which names the file."""
    with open_regular(path, "placement") as file:
        try:
            return from_dict(json_object(file.read()))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: no placement: {error}") from error
