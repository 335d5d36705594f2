"""Steps that leave a stamp when they are done, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


class StepError(Exception):
    """Say which command failed, and how its output ended."""


class Place:
    """A folder for everything that is built, with a log of each step and a stamp of each that is done."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder.resolve()
        self.jobs = jobs
        for name in ("stamps", "logs", "wheels"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def done(self, step: str) -> bool:
        """Say whether a step has been done."""
        return (self.folder / "stamps" / step).exists()

    def forget(self, step: str) -> None:
        """Have a step done again."""
        (self.folder / "stamps" / step).unlink(missing_ok=True)

    def once(self, step: str, work: Callable[[], None]) -> None:
        """Do a step unless its stamp is there; the stamp holds how many seconds it took."""
        if self.done(step):
            print(f"{step}: done before", flush=True)
            return
        print(f"{step} ...", flush=True)
        begin = time.monotonic()
        work()
        seconds = time.monotonic() - begin
        (self.folder / "stamps" / step).write_text(f"{seconds:.0f}\n")
        print(f"{step}: {seconds:.0f} s", flush=True)

    def command(
        self,
        log: str,
        words: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a command; its output goes to a log. Raises StepError with the log's end if it fails."""
        path = self.folder / "logs" / f"{log}.log"
        with path.open("ab") as out:
            done = subprocess.run(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}, cwd=cwd,
                check=False,
            )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            raise StepError(f"{words[0]} failed with {done.returncode}; {path} ends:\n{tail}")
