"""Start the process that speaks to Ray, and speak with it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from remoe_edge.deploy.ray_side import MISSING
from remoe_edge.deploy.record import Deployment, Ray
from remoe_edge.errors import InputError, RemoeError, UnsupportedError

Line = dict[str, Any]
_REACH_S = 5.0


def check_installed() -> None:
    """Raise UnsupportedError without the extra, naming it."""
    if importlib.util.find_spec("ray") is None:
        raise UnsupportedError(MISSING)


def check_reachable(address: str) -> None:
    """Raise InputError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        return  # `auto`, ray://...: as Ray understands it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"no Ray at {address}: {reason}") from error


def with_token(ray: Ray) -> list[str]:
    """Write what a command begins with, so that Ray finds its token there and nowhere at home.

    A path may be seen by other users; the token that lies there may not.
    """
    usage = ["env", "RAY_USAGE_STATS_ENABLED=0"]
    if ray.token is None:
        return usage  # its user's environment says how to get in
    return [*usage, "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={ray.token}"]


def _command(ray: Ray, name: str) -> list[str]:
    return [*with_token(ray), sys.executable, "-m", "remoe_edge.deploy.ray_side", name]


def ask(ray: Ray, name: str, job: Line, *, timeout_s: float = 300.0) -> Line:
    """Have one command done and give its answer. Raises RemoeError with what went wrong, in a line."""
    check_installed()
    text = json.dumps({"address": ray.address, **job}) + "\n"
    try:
        done = subprocess.run(
            _command(ray, name), input=text, capture_output=True, text=True, errors="replace",
            timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RemoeError(f"Ray at {ray.address} did not answer within {timeout_s:.0f} s") from error
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        raise RemoeError(f"Ray at {ray.address}: {words[-1] if words else 'no answer'}")
    if "error" in lines[-1]:
        raise RemoeError(f"Ray at {ray.address}: {lines[-1]['error']}")
    answer: Line = lines[-1]
    return answer


class RayHolder:
    """Hold leases of a deployment through Ray, for as long as this process lives.

    `hear` takes each line about a lease, in a thread of its own.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._process: subprocess.Popen[str] | None = None
        self._writing = threading.Lock()

    def start(self, hear: Callable[[Line], None]) -> None:
        """Start the process. Returns at once."""
        check_installed()
        self._process = subprocess.Popen(
            _command(self._deployment.ray, "hold"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, errors="replace", bufsize=1, start_new_session=True,
        )  # fmt: skip
        self._send(address=self._deployment.ray.address, apps=self._deployment.apps)
        threading.Thread(target=self._listen, args=(hear,), name="leases", daemon=True).start()

    def hold(self, function: str, at: int) -> None:
        """Ask for a lease; the `at`-th of this function."""
        self._send(hold=[function, at])

    def release(self, function: str, at: int) -> None:
        """Give one up."""
        self._send(release=[function, at])

    def close(self) -> None:
        """End all leases and the process."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it may be gone already
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, **line: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # That it has ended is told by `_listen`.
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()

    def _listen(self, hear: Callable[[Line], None]) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for text in self._process.stdout:
            if text.startswith("{"):
                hear(json.loads(text))
        hear({"error": "the process that holds leases has ended"})


def deploy(deployment: Deployment, functions: Sequence[Line], *, keep_s: float) -> None:
    """Deploy functions as Serve applications."""
    ask(deployment.ray, "up", {"functions": list(functions), "keep_s": keep_s})


def status(deployment: Deployment) -> dict[str, Line]:
    """Give each function's state: the application's status, and how many replicas are in which state."""
    apps = deployment.apps
    answer = ask(deployment.ray, "status", {"apps": list(apps.values())})["apps"]
    return {function: answer[app] for function, app in apps.items()}


def take_down(deployment: Deployment) -> None:
    """Delete the Serve applications; their replicas end."""
    ask(deployment.ray, "down", {"apps": list(deployment.apps.values())})


def token_file(folder: Path, token: str) -> Path:
    """Write a token where only this user reads it."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(token)
    return path
