"""The same bench at each power mode of a board: what a token costs in time and in energy.

Modes are set by NVIDIA's `nvpmodel`, which wants root. The mode that was found is set again at the end,
however that comes. A mode that wants a reboot is left out, and said.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoe_edge.errors import UnsupportedError
from remoe_edge.machine.cgroups import ROOT
from remoe_edge.machine.power_mode import power_mode

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, VERSION = "remoe-edge bench power", 1
_TOOL = "usr/sbin/nvpmodel"
_ANSWER_S = 60.0
_SETTLE_S = 2.0  # until clocks and sensors follow


class ModeRefusedError(UnsupportedError):
    """Say why a mode was not taken."""


@dataclass
class Board:
    """A board whose power mode can be set. `root`: where its files are, and the tool."""

    root: Path = ROOT
    settle_s: float = _SETTLE_S

    def check(self) -> None:
        """Raise UnsupportedError where there is nothing to set, or nobody who may."""
        tool, mode = self.root / _TOOL, power_mode(self.root)
        if not tool.exists() or not mode.modes or mode.number is None:
            raise UnsupportedError(
                "--power measures at each power mode of a board: there is no nvpmodel with modes here"
            )
        if not os.access(tool, os.X_OK) or (os.geteuid() != 0 and self.root == ROOT):
            raise UnsupportedError("--power sets power modes, which takes root: run it with sudo")

    @contextlib.contextmanager
    def modes(self) -> Iterator[dict[str, str]]:
        """Give number -> name; the mode that was found is set again when the block ends."""
        self.check()
        found = power_mode(self.root)
        assert found.number is not None
        try:
            yield dict(found.modes)
        finally:
            if power_mode(self.root).number != found.number:
                self.set(found.number)

    def set(self, number: str) -> None:
        """Set a mode and wait until it holds. Raises ModeRefusedError."""
        try:
            # It asks before it reboots the board; nobody answers.
            done = subprocess.run(
                [self.root / _TOOL, "-m", number], stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", timeout=_ANSWER_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModeRefusedError(f"nvpmodel -m {number}: {error}") from error
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        why = said[-1] if said else f"status {done.returncode}"
        if done.returncode != 0 or power_mode(self.root).number != number:
            raise ModeRefusedError(f"nvpmodel -m {number} did not take effect: {why}")
        time.sleep(self.settle_s)


@dataclass
class ByMode:
    """Hold the bench's records by mode, and the modes that were left out."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Give a row for each mode and arm, and the whole records."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.rows(),
            "left_out": self.left_out,
            "records": self.records,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Give mode, arm, time, power and energy of a token; None where no sensor tells."""
        found = []
        for mode, record in self.records.items():
            for arm, figures in record["summary"].items():
                joules = figures.get("joules_per_token")
                rate = figures["tokens_per_s"]["median"]
                found.append({
                    "mode": mode,
                    "arm": arm,
                    "clocks_held": record["machine"].get("clocks_held"),
                    "tpot_ms": figures["tpot_ms"]["median"],
                    "tokens_per_s": rate,
                    "joules_per_token": joules,
                    "tokens_per_joule": 1 / joules if joules else None,
                    "decode_w": None if joules is None else joules * rate,
                })  # fmt: skip
        return found

    def table(self) -> Table:
        """Make the one table."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE, title="by power mode", title_justify="left")
        for heading in ("mode", "arm"):
            table.add_column(heading, no_wrap=True)
        for heading in ("ms/token", "tok/s", "W", "J/token", "tok/J"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows():
            figures = (
                (row["tpot_ms"], 1), (row["tokens_per_s"], 2), (row["decode_w"], 2),
                (row["joules_per_token"], 2), (row["tokens_per_joule"], 3),
            )  # fmt: skip
            cells = ["-" if each is None else f"{each:,.{digits}f}" for each, digits in figures]
            table.add_row(row["mode"], row["arm"], *cells)
        return table


def at_each_mode(
    board: Board,
    measure: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
    saved: Callable[[dict[str, Any]], None] = lambda found: None,
) -> ByMode:
    """Run `measure`, which returns a bench's record, at each mode; modes that are refused are left out.

    saved: called with the whole after each mode. Raises UnsupportedError where no mode can be set.
    """
    found = ByMode()
    with board.modes() as modes:
        for number, name in modes.items():
            try:
                if power_mode(board.root).number != number:
                    board.set(number)
            except ModeRefusedError as error:
                found.left_out[name] = str(error)
                say(f"power mode {name} is left out: {error}")
                continue
            say(f"power mode {name}")
            found.records[name] = measure()
            saved(found.as_json())
    if not found.records:
        raise UnsupportedError("; ".join(found.left_out.values()))
    return found
