"""Run a step in a process of its own, so that one that dies or hangs takes no other along."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TRACE_S = 10.0  # to say where it stands


def run_step(
    command: Sequence[str],
    seconds: float,
    *,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run a command for so long at most; what it starts ends with it.

    Gives its exit status or "not finished", its seconds, and the JSON object of its last line. Without
    one it gives the last lines that it said.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=said, text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})},
        )  # fmt: skip
        try:
            answer, _ = process.communicate(timeout=seconds)
            result: dict[str, Any] = {"status": process.returncode}
        except subprocess.TimeoutExpired:
            result = {"status": "not finished", "allowed_s": round(seconds, 1)}
            _end(process, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TRACE_S)
            _end(process, signal.SIGKILL)
            answer, _ = process.communicate()
        finally:
            _end(process, signal.SIGKILL)
        lines = answer.strip().splitlines()
        if result["status"] == 0 and lines and lines[-1].startswith("{"):
            result |= json.loads(lines[-1])
        else:
            said.seek(0)
            result["said"] = (lines[-30:] + said.read().strip().splitlines())[-60:]
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def _end(process: subprocess.Popen[str], by: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, by)
