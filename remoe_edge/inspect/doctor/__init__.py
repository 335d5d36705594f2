"""What this machine and this installation can do, one check at a time, and what to do about the rest.

Nothing here needs the engine to work: a check that finds it broken says so.
"""

from __future__ import annotations

from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.inspect.doctor import board, computing, installation, memory, sensors, storage
from remoe_edge.inspect.doctor.check import FAIL, INFO, OFF, OK, Check
from remoe_edge.machine.cgroups import ROOT

__all__ = ["FAIL", "INFO", "OFF", "OK", "Check", "can_run", "examine"]


def examine(path: Path, root: Path = ROOT) -> list[Check]:
    """Run every check; storage is checked where `path` (a file or a folder) lies.

    root: where /proc and /sys are, for the board's checks and its sensors; another place for recorded
    trees. Raises InputError when there is no such path.
    """
    if not path.exists():
        raise InputError(f"no file or folder at {path}")
    checks = installation.checks()
    if can_run(checks):
        checks += [*computing.checks(), *storage.readers(path)]
    return [
        *checks,
        storage.read_ahead(path),
        *memory.checks(),
        *board.checks(path, root),
        *sensors.checks(path, root),
        *installation.extras(),
    ]


def can_run(checks: list[Check]) -> bool:
    """Tell whether the engine can run at all."""
    return all(check.state != FAIL for check in checks)
