"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass

OK, OFF, INFO, FAIL = "ok", "off", "info", "fail"


@dataclass(frozen=True)
class Check:
    """Hold one finding: `state` is ok, off (runs without), info, or fail (the engine cannot run)."""

    name: str
    state: str
    detail: str
    advice: str = ""
