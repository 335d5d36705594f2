"""How a running engine shows itself to `remoe-edge top`: a small file, locked while it lives.

The folder belongs to the user alone (0700), the files too (0600). An engine holds a lock on its file,
which the kernel drops however the engine ends; a file that nobody holds is stale, and whoever looks
removes it. The content is one block: a checksum, then JSON, written at once and at most ten times a
second, so that a look never sees half of it and nobody looking costs next to nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
import time
import zlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import remoe_edge
from remoe_edge.engine.counters import METRICS
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats

_BLOCK_BYTES = 4096
_INTERVAL_S = 0.1
_RECENT = 16  # tokens that rates are taken from
_SUFFIX = ".status"
_TORN_LOOKS = 5


def default_folder(runtime: str | None = None) -> Path:
    """Return the first of this user's folders that can be made or written.

    In `runtime` (XDG_RUNTIME_DIR), in /run/user, or else in /tmp: the last choice in any case, where
    an error then says why.
    """
    found = folders(runtime)
    return next((folder for folder in found if _is_usable(folder)), found[-1])


def _is_usable(folder: Path) -> bool:
    """Tell whether a folder is this user's to write in, or can be made so."""
    place = folder if os.path.lexists(folder) else folder.parent
    return _is_own(place) and os.access(place, os.W_OK | os.X_OK)


def folders(runtime: str | None = None) -> list[Path]:
    """List where this user's engines may show themselves, the first choice first."""
    uid = os.getuid()
    found = [Path(runtime) / "remoe-edge"] if runtime and Path(runtime).is_absolute() else []
    session = Path(f"/run/user/{uid}")
    if _is_own(session):
        found.append(session / "remoe-edge")
    found.append(Path(f"/tmp/remoe-edge-{uid}"))
    return list(dict.fromkeys(found))


def _is_own(folder: Path) -> bool:
    """Tell whether a folder is this user's alone to write in, and no link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


class Status:
    """Publish one engine in `folder`. Raises OSError where that cannot be done safely."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_own(folder):
            raise PermissionError(f"{folder} is not this user's own folder")
        # Containers may share the folder and count their processes alike.
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.path = folder / (name + _SUFFIX)
        new = folder / f".{name}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(new, flags, 0o600)
        # Locked before it has its name: whoever looks never takes a new file for a stale one.
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._state: dict[str, Any] = {
            "pid": os.getpid(),
            "version": remoe_edge.__version__,
            "started_unix_s": round(time.time(), 3),
            "state": "loading",
        }
        self._totals: dict[str, Any] = {
            "answers": 0, "n_prompt": 0, "n_generated": 0,
            **{each.name: each.default for each in METRICS}, "decode_ms": 0.0,
        }  # fmt: skip
        self._recent: deque[Step] = deque(maxlen=_RECENT)
        self._answering = 0
        self._written_s = 0.0
        self._write()
        os.rename(new, self.path)

    # --- what is told ---

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Show the model and its settings."""
        names = ("streamed", "budget_bytes", "slots", "policy", "threads", "n_ctx", "lossy")
        self._state.update({name: facts.get(name) for name in names})
        # A path of any length would not fit the block.
        self._state.update(model=str(facts["model"])[-300:], state="idle")
        self._write()

    def on_begin(self, n_prompt: int) -> None:
        """Show that a prompt is being read."""
        self._answering += 1
        self._state["state"] = "prefill"
        self._write()

    def on_step(self, step: Step) -> None:
        """Count; show it if the last time is a while ago."""
        totals = self._totals
        for each in METRICS:
            totals[each.name] += getattr(step, each.name)
        if step.phase == "decode":
            totals["n_generated"] += step.n_tokens
            totals["decode_ms"] += step.ms
            self._recent.append(step)
        else:
            totals["n_prompt"] += step.n_tokens
            totals["n_generated"] += self._answering > 0  # a prompt ends with the first token
        self._state["state"] = step.phase
        if step.slots:
            self._state.update(slots=step.slots, budget_bytes=step.budget_bytes)
        if step.end_s - self._written_s >= _INTERVAL_S:
            self._write()

    def on_answer(self, answer: AnswerStats) -> None:
        """Show that it waits for the next question."""
        self._answering -= 1
        self._totals["answers"] += 1
        if self._answering == 0:
            self._state["state"] = "idle"
        self._write()

    def on_close(self) -> None:
        """Take the file away. Idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._fd)
            self._fd = -1

    # --- the file ---

    def _write(self) -> None:
        self._written_s = time.perf_counter()
        rounded = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in self._totals.items()
        }
        state = {
            **self._state,
            "updated_unix_s": round(time.time(), 3),
            "totals": rounded,
            "recent": recent(self._recent),
        }
        text = json.dumps(state).encode().ljust(_BLOCK_BYTES - 9)
        # A pwrite, no mapping: a file that someone truncates is then an error and no SIGBUS.
        os.pwrite(self._fd, b"%08x " % zlib.crc32(text) + text, 0)


def recent(steps: deque[Step]) -> dict[str, float | None]:
    """Sum up the last tokens: tokens/s, hit rate (0 to 1), MiB/s, stall share (0 to 1)."""
    seconds = sum(step.ms for step in steps) / 1000
    hits, misses = sum(step.hits for step in steps), sum(step.misses for step in steps)
    n_tokens = sum(step.n_tokens for step in steps)
    stalled = sum(step.stall_ms for step in steps) / 1000
    n_bytes = sum(step.bytes_read for step in steps)
    return {
        "tokens_per_s": round(n_tokens / seconds, 3) if seconds else None,
        "hit_rate": round(hits / (hits + misses), 4) if hits + misses else None,
        "read_mib_per_s": round(n_bytes / 2**20 / seconds, 2) if seconds else None,
        "stall_share": round(stalled / seconds, 4) if seconds else None,
    }


def running(where: list[Path]) -> list[dict[str, Any]]:
    """Read every engine that shows itself in these folders; remove what dead ones left."""
    found = []
    for folder in where:
        if not _is_own(folder):
            continue
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            state = _look(path)
            if state is not None:
                found.append(state)
    return sorted(found, key=lambda state: (state.get("started_unix_s", 0), state.get("pid", 0)))


def _look(path: Path) -> dict[str, Any] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held by a living engine; or no locks here, and then nothing is removed
            return _read(fd)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    finally:
        os.close(fd)


def _read(fd: int) -> dict[str, Any] | None:
    for look in range(_TORN_LOOKS):
        block = os.pread(fd, _BLOCK_BYTES, 0)
        if block[:9] == b"%08x " % zlib.crc32(block[9:]):
            with contextlib.suppress(ValueError, RecursionError):  # another version's, perhaps
                state = json.loads(block[9:])
                return state if isinstance(state, dict) else None
            return None
        time.sleep(0.001 * (look + 1))
    return None
