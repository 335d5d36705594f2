"""Measure this machine for a model, or remember what was measured.

A record is kept for each file, device and setting that times depend on, in the user's cache folder.
A file of another size, time of change, device or inode, another build of this package or another
processor count is measured anew; `fresh` measures in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import RemoeError
from remoe_edge.files.atomic import write_text
from remoe_edge.files.reading import json_object
from remoe_edge.files.user_folder import home
from remoe_edge.machine.power_mode import power_mode
from remoe_edge.native import _core
from remoe_edge.plan import compute as computing
from remoe_edge.plan import reads as reading
from remoe_edge.plan.latency import Machine
from remoe_edge.plan.sizes import ModelSizes, measure_sizes

_FORMAT = 1
# Settings of the engine that a token's time depends on.
_TIMED = ("routers", "n_ubatch", "repack", "flash_attention", "io", "direct", "depth")

NO_FOLDER = "there is no home folder"


@dataclass(frozen=True)
class Measured:
    """Hold the machine and a line for each thing worth saying about how it was measured."""

    machine: Machine
    notes: tuple[str, ...]


def records_folder() -> Path | None:
    """Say where measurements are kept: ~/.cache/remoe-edge/plan; None for a user without a home."""
    own = home()
    return None if own is None else own / ".cache" / "remoe-edge" / "plan"


def measure_machine(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    *,
    memory_bytes: int,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Probe storage and computing for a model, a few seconds, or reuse an earlier probe.

    `settings` name the context. Raises RemoeError of the kind that stood in the way.
    """
    sizes = measure_sizes(path, settings.n_ctx)
    record = record_path(path, settings)
    if not fresh:
        kept = _load(record, sizes)
        if kept is not None:
            return Measured(kept, (f"measured before ({record}); measure anew with --fresh",))
    progress("computing")
    compute = computing.measure_compute(path, sizes, settings, memory_bytes=memory_bytes)
    progress("storage")
    reads = reading.measure_reads(
        path, sizes, depth=compute.depth,
        backend=settings.io, direct=settings.direct,
    )  # fmt: skip
    machine = Machine(sizes, compute, reads).calibrated()
    return Measured(machine, _save(record, machine))


def record_path(path: str | os.PathLike[str], settings: EngineSettings) -> Path | None:
    """Name the record of a file as it is now, on its device, under these settings.

    None where no records are kept.
    """
    folder = records_folder()
    if folder is None:
        return None
    stat, core = os.stat(path), os.stat(_core.__file__)
    asked = {name: getattr(settings, name) for name in _TIMED}
    asked["power"] = power_mode().line()
    asked["threads"] = settings.n_cores  # left alone, and given as it is anyway, it is the same
    parts = [
        _FORMAT, core.st_size, core.st_mtime_ns, platform.machine(), len(os.sched_getaffinity(0)),
        os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_dev, stat.st_ino, settings.n_ctx,
        sorted((name, str(value)) for name, value in asked.items()),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return folder / f"{digest[:32]}.json"


def _load(record: Path | None, sizes: ModelSizes) -> Machine | None:
    """Read a record; one that is not there or not whole counts as none, and is written anew."""
    if record is None:
        return None
    try:
        held = json_object(record.read_bytes())
        return Machine(
            sizes, computing.from_dict(held["compute"]), reading.from_dict(held["reads"])
        )
    except (OSError, ValueError, KeyError, TypeError, RemoeError):
        return None


def _save(record: Path | None, machine: Machine) -> tuple[str, ...]:
    if record is None:
        return (f"the measurement is not kept: {NO_FOLDER}",)
    held = {
        "model": machine.sizes.path,
        "compute": computing.as_dict(machine.compute),
        "reads": reading.as_dict(machine.reads),
    }
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(held) + "\n", record)
    except (OSError, RemoeError) as error:
        return (f"the measurement is not kept: {error}",)
    return ()
