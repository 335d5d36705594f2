"""From a model and prices to a placement: what `placement` asks, measured on this machine.

Functions are taken to have processors like this machine's. A trace tells which experts are used; without
one every expert counts as equally likely, and nothing is gained by choosing among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError
from remoe_edge.machine.memory import available
from remoe_edge.native import _core
from remoe_edge.placement import times_file
from remoe_edge.placement.activation import Floats, even
from remoe_edge.placement.latency_curve import Steps, by_processors, curve
from remoe_edge.placement.planner import Placement, cheapest
from remoe_edge.placement.price import PriceTable
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload
from remoe_edge.plan.latency import Machine
from remoe_edge.plan.measure import measure_machine
from remoe_edge.plan.misses import prepare
from remoe_edge.plan.planner import fixed_bytes
from remoe_edge.predict.store import activation
from remoe_edge.routing.trace import read_trace
from remoe_edge.units import parse_bytes, parse_ms

_PARALLEL = 0.9  # the part of an expert's FFN that several cores share, where nobody has measured
_FLOAT_BYTES = 4


def parse_slo(text: str) -> Slo:
    """Turn "tpot=250ms,ttft=3s", or one of them, into targets. Raises InputError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if name not in ("tpot", "ttft") or not equals or name in found:
            raise InputError(f"'{text}' names no targets; write for example tpot=250ms,ttft=3s")
        found[name] = parse_ms(value)
    return Slo(found.get("tpot"), found.get("ttft"))


def parse_link(text: str) -> Link:
    """Turn "0.6ms,125MB", a round trip and bytes per second, into a link. Raises InputError."""
    time, comma, rate = text.partition(",")
    if not comma:
        raise InputError(
            f"'{text}' is no link; write a round trip and bytes per second: 0.6ms,125MB"
        )
    return Link(parse_ms(time), parse_bytes(rate))


def as_request(
    machine: Machine, row_bytes: int, link: Link, slo: Slo, workload: Workload
) -> Request:
    """Put a measured machine into the terms of a placement."""
    sizes, compute = machine.sizes, machine.compute
    shape = Shape(
        n_layers=sizes.n_layers,
        n_experts=sizes.n_experts,
        top_k=sizes.top_k,
        expert_bytes=max(layer.expert_bytes for layer in sizes.layers),
        fixed_bytes=fixed_bytes(machine),
        row_bytes=row_bytes,
    )
    speed = Speed(
        decode_dense_ms=compute.dense_ms + compute.sample_ms,
        decode_row_ms=compute.whole_ms / sizes.top_k,
        prefill_base_ms=compute.prefill_dense_base_ms + compute.prefill_ffn_base_ms,
        prefill_dense_each_ms=compute.prefill_dense_each_ms,
        prefill_row_ms=compute.prefill_ffn_each_ms / sizes.n_layers / sizes.top_k,
    )
    return Request(shape, speed, link, slo, workload)


def run_placement(
    path: Path,
    settings: EngineSettings,
    *,
    table: PriceTable,
    slo: Slo,
    link: Link,
    workload: Workload,
    trace_path: Path | None = None,
    function_times: Path | None = None,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Placement:
    """Measure this machine and place a model's experts on it and on functions, as cheaply as can be.

    function_times: measured points of T(y), in place of this machine's processors.

    See `measure_machine` and `placement.planner.place` for what is raised.
    """
    file = _core.ModelFile.open(str(path))
    trained = file.unsigned(f"{file.architecture}.context_length")
    width = file.unsigned(f"{file.architecture}.embedding_length")
    if not width:
        raise InputError(f"{path} does not say how wide its activations are (embedding_length)")
    settings = settings.replace(n_ctx=settings.context(trained))
    measured = measure_machine(
        path, settings, memory_bytes=available().available_bytes, fresh=fresh, progress=progress
    )
    machine = measured.machine
    sizes = machine.sizes
    notes = [*measured.notes]
    shares: Floats = even(sizes.n_layers, sizes.n_experts)
    if trace_path is None:
        notes.append("no --trace: every expert counts as equally likely")
    else:
        trace = prepare(
            read_trace(trace_path), sizes.n_layers, sizes.n_experts, sizes.top_k, sizes.fingerprint
        )
        shares = activation(trace.routed(), sizes.n_experts).astype("float64")
    cores = settings.n_cores
    one_core_ms = machine.compute.pair_ms / ((1 - _PARALLEL) + _PARALLEL / cores)
    if function_times is not None:
        points = times_file.load(function_times)
    else:
        points = by_processors("like this machine", table.function, one_core_ms, parallel=_PARALLEL)
        notes.append(
            f"functions are taken to compute as this machine does: {one_core_ms:.3f} ms for a row on "
            "one core; measure yours before you rely on it"
        )
    fitted = curve(points, stepwise=None if table.function.proportional else True)
    if isinstance(fitted, Steps) and table.function.proportional:
        notes.append(
            "no exponential lies within 10 % of these times: sizes are searched one by one"
        )
    request = as_request(machine, 2 * _FLOAT_BYTES * width, link, slo, workload)
    best, _ = cheapest(request, table, fitted, shares)
    return replace(best, notes=(*best.notes, *notes))
