"""Ray on this machine: one head node, without a dashboard, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remoe_edge.deploy.ray_process import check_installed, token_file, with_token
from remoe_edge.deploy.record import Ray
from remoe_edge.errors import RemoeError

OBJECT_STORE_BYTES = 80_000_000  # about the least that Ray takes; nothing here goes through it
_PREFIX = "remoe-"
_START_S = 180.0
_STOP_S = 45.0
_TIMED_OUT = "timed out during startup"  # Ray gives its own processes 30 s, which cannot be set


def start(*, patience_s: float = _START_S) -> Ray:
    """Start Ray and say where it is; on a busy machine, more than once.

    Raises RemoeError with Ray's last line where it does not come up.
    """
    check_installed()
    until = time.monotonic() + patience_s
    while True:
        try:
            return _start(time.monotonic() + patience_s)
        except RemoeError as error:
            if _TIMED_OUT not in str(error) or time.monotonic() > until:
                raise


def _start(until: float) -> Ray:
    # Paths of sockets have at most 107 characters, of which Ray takes 62.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=short))
    token = token_file(folder, secrets.token_hex(32))
    place = folder / "ray"
    log = folder / "ray.log"
    command = [
        *with_token(Ray("", token=str(token))), sys.executable, "-m", "ray.scripts.scripts", "start",
        "--head", "--block", "--port=0", "--include-dashboard=false", "--disable-usage-stats",
        "--dashboard-agent-listen-port=0", "--include-log-monitor=false",
        f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={place}",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    address = place / "ray_current_cluster"
    try:
        while not (address.is_file() and address.read_text().strip()):
            if process.poll() is not None or time.monotonic() > until:
                text = log.read_text(errors="replace")
                words = [line for line in text.splitlines() if line.strip()]
                raise RemoeError(f"Ray did not start: {words[-1] if words else 'it said nothing'}")
            time.sleep(0.1)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Ray(
        address.read_text().strip(), str(token), process.pid, started_at(process.pid), str(folder)
    )


def alive(ray: Ray) -> bool:
    """Say whether the Ray that was started here still runs."""
    return bool(ray.pid) and started_at(ray.pid) == ray.started != 0


def stop(ray: Ray) -> None:
    """End a Ray that was started here, and remove its folder. Others are left alone."""
    if alive(ray):
        os.kill(ray.pid, signal.SIGTERM)
        until = time.monotonic() + _STOP_S
        while alive(ray) and time.monotonic() < until:
            time.sleep(0.1)
        # All its processes are in one session and one group, which nobody else's are in.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(ray.pid, signal.SIGKILL)
    folder = _own_folder(ray)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _own_folder(ray: Ray) -> Path | None:
    """Give the folder that `start` has made; None for any other that a record may name."""
    if ray.folder is None:
        return None
    folder = Path(ray.folder)
    is_own = (
        folder.is_absolute()
        and folder.name.startswith(_PREFIX)
        and not folder.is_symlink()
        and ray.token == str(folder / "token")
        and (folder / "ray.log").is_file()
    )
    return folder if is_own else None


def started_at(pid: int) -> int:
    """Give when a process began, in ticks since the machine did; 0 for none, or one that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
