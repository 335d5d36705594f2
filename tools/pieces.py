"""A long run in pieces: each is kept as it is done, and the next call goes on after the last.

Beside the record `x.json`, a folder `x.json.part` holds what has been measured; it is gone once the
record is written. A call with other settings, or another model, does not go on with it. Where a tool
says how its record is cut into pieces, a call also goes on with a record that is there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remoe_edge.bench.disturbances import DisturbanceMeter
from remoe_edge.files.atomic import replacing

NOT_DONE = 75  # a process's exit code, as sendmail has it: try again
# The settings and the pieces, by name, that a record was made of.
Parts = tuple[dict[str, Any], dict[str, Any]]
PartsOf = Callable[[dict[str, Any]], Parts]


class TimeUpError(Exception):
    """The seconds of this call are over; the next one goes on."""


class Pieces:
    """Hold what is measured of one run.

    out: the record's path; without one nothing is kept. seconds: no piece begins that would likely end
    later than that, but for the call's first one. settings: what pieces have to have in common.
    parts_of: how a record is cut into pieces; without it `out` is written anew.
    """

    def __init__(
        self,
        out: Path | None,
        settings: dict[str, Any],
        seconds: float | None = None,
        parts_of: PartsOf | None = None,
    ) -> None:
        self._kept = out is not None
        self.folder = Path(tempfile.mkdtemp()) if out is None else out.with_name(out.name + ".part")
        self._file = self.folder / "pieces.json"
        self._settings = json.loads(json.dumps(settings, default=str))
        self._end_s = time.monotonic() + (math.inf if seconds is None else seconds)
        self._longest_s: float | None = None
        self.record: dict[str, Any] = {}
        self.found: dict[str, Any] = {}
        self.machine: dict[str, Any] = {}
        if out is not None and parts_of is not None and out.exists():
            self.record = self._take(out, parts_of)
        if self._file.exists():
            kept = self._take(self._file, lambda held: (held["settings"], held["found"]))
            self.machine = kept["machine"]
        else:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _take(self, path: Path, parts_of: PartsOf) -> dict[str, Any]:
        """Add a file's pieces to those found, unless they are of another run; give all it holds."""
        try:
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            settings, found = parts_of(held)
        except (ValueError, TypeError, KeyError) as error:
            raise SystemExit(f"{path} is no record of this tool: name another with -o") from error
        if settings != self._settings:
            raise SystemExit(
                f"{path} holds pieces of another run: {settings}, not {self._settings}. Name another "
                "with -o, or remove it to begin anew."
            )
        self.found |= found
        return held

    def get(self, name: str, run: Callable[[], Any]) -> Any:
        """Give a piece, as plain values: the one that is kept, or what `run` finds now.

        Raises TimeUpError where the call's time is over.
        """
        if name in self.found:
            return self.found[name]
        begin_s = time.monotonic()
        if self._longest_s is not None and begin_s + self._longest_s > self._end_s:
            raise TimeUpError(f"{len(self.found)} pieces are kept; the same command goes on")
        meter, before = DisturbanceMeter(), _cpu_s()
        found = json.loads(json.dumps(run()))
        figures = meter.finish(_cpu_s() - before).figures
        self.machine[name] = {
            key: figures.get(key) for key in ("seconds", "steal_share", "other_load_share")
        }
        self.found[name] = found
        self._longest_s = max(self._longest_s or 0.0, time.monotonic() - begin_s)
        if self._kept:
            held = {"settings": self._settings, "found": self.found, "machine": self.machine}
            with replacing([self._file]) as [partial]:
                partial.write_text(json.dumps(held), encoding="utf-8")
        return found

    def disturbed(self) -> dict[str, float]:
        """Say how much of the processors others took at most, in any piece, and the host."""
        return {
            key: max((float(each[key] or 0) for each in self.machine.values()), default=0.0)
            for key in ("steal_share", "other_load_share")
        }

    def close(self) -> None:
        """Remove what is kept: the record has it."""
        self._file.unlink(missing_ok=True)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def in_pieces(
    out: Path | None,
    settings: dict[str, Any],
    seconds: float | None = None,
    parts_of: PartsOf | None = None,
) -> Iterator[Pieces]:
    """Have a run's pieces, until its record is written; end with NOT_DONE before that."""
    pieces = Pieces(out, settings, seconds, parts_of)
    try:
        yield pieces
    except TimeUpError as up:
        print(up, file=sys.stderr)
        raise SystemExit(NOT_DONE) from up
    except BaseException:
        if out is None or not pieces.machine:  # nothing was done that is worth keeping
            shutil.rmtree(pieces.folder)
        raise
    pieces.close()


def _cpu_s() -> float:
    """Give the processor time of this process, and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
