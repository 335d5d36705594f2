"""A child process that runs what may die, a line each way, and is started anew when it has died."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

CAUSE = re.compile(r"([\w./-]+\.(?:cpp|c|h|cc)):(\d+): (.*)")


class Child:
    """A process that runs inputs until one of them ends it; then another is started.

    module: what it runs; it reads an input a line and writes {"end": ..., "text": ...} a line. seconds:
    how long an input may take before it counts as a hang.
    """

    def __init__(self, folder: Path, module: str, *arguments: str, seconds: float = 60) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._errors = folder / "stderr"
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, text: str | Path) -> tuple[str, str]:
        """Return ("answered" and the like, why), or ("died", "SIGABRT: cause")."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        os.truncate(self._errors, 0)
        process.stdin.write(os.fsencode(text) + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], self._seconds)[0]:
            self.close()
            return "died", f"hang: more than {self._seconds:.0f} s"
        line = process.stdout.readline()
        if line:
            said = json.loads(line)
            return said["end"], said["text"]
        code = process.wait()
        self.close()
        return "died", f"{_ending(code)}: {self._cause()}"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._errors, "ab") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={
                    **os.environ,
                    "GGML_NO_BACKTRACE": "1",
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                    "PYTHONFAULTHANDLER": "",
                },
            )
        return self._process

    def _cause(self) -> str:
        """Find llama.cpp's assertion in what was written to stderr."""
        text = self._errors.read_text(errors="replace")
        found = CAUSE.search(text)
        if found is None:
            lines = text.strip().splitlines()
            return lines[-1][:160] if lines else "nothing was said"
        return f"{Path(found[1]).name}:{found[2]}: {found[3][:120]}"


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
