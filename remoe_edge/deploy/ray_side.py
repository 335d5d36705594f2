"""The only process that imports Ray: `python -m remoe_edge.deploy.ray_side COMMAND`.

A job comes as one line of JSON on stdin, and lines of JSON go out.

    up      deploy functions as Serve applications           {"done": true}
    status  tell each application's state and replicas       {"apps": {...}}
    down    delete applications                              {"done": true}
    hold    hold leases while stdin is open. More lines come in: {"hold": [FUNCTION, AT]} and
            {"release": [FUNCTION, AT]}; out go leases, and what became of them

Ray takes the token from its environment, which whoever starts this has set (`ray_process`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import IO, Any

from remoe_edge.errors import UnsupportedError

MISSING = "deploying needs Ray: pip install 'remoe-edge[remote]'"


def main() -> None:
    """Do one command."""
    # Whatever Ray prints must not come between the lines.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    command, job = sys.argv[1], json.loads(sys.stdin.readline())
    try:
        _connect(job["address"])
        {"up": _up, "status": _status, "down": _down, "hold": _hold}[command](job, out)
    except BaseException as error:
        _say(out, error=_first_line(error), kind=type(error).__name__)
    out.flush()
    # Ray's own end would wait for a cluster that may be gone.
    os._exit(0)


def _connect(address: str) -> None:
    try:
        import ray
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(MISSING) from error
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")


def _up(job: dict[str, Any], out: IO[str]) -> None:
    from ray import serve

    from remoe_edge.deploy.replica import Replica

    serve.start(proxy_location="Disabled")  # calls come through handles, never over HTTP
    for each in job["functions"]:
        deployment = serve.deployment(Replica).options(
            name="function",
            max_ongoing_requests=1,  # a replica is one conversation's as long as its lease is open
            autoscaling_config={
                "min_replicas": 0,
                "initial_replicas": 0,
                "max_replicas": each["most_replicas"],
                "target_ongoing_requests": 1,
                "upscale_delay_s": 0,
                "downscale_delay_s": job["keep_s"],
                "downscale_to_zero_delay_s": job["keep_s"],
                "metrics_interval_s": 0.5,
                "look_back_period_s": 1.0,
            },
            health_check_period_s=1,
            health_check_timeout_s=10,
            graceful_shutdown_timeout_s=5,
            ray_actor_options=each["resources"],
        )
        serve.run(
            deployment.bind(each["spec"]), name=each["app"], route_prefix=None, blocking=False
        )
    _say(out, done=True)


def _status(job: dict[str, Any], out: IO[str]) -> None:
    from ray import serve

    apps = {}
    found = serve.status().applications
    for app in job["apps"]:
        if app not in found:
            apps[app] = {"status": "NOT_DEPLOYED", "replicas": {}, "message": ""}
            continue
        deployments = list(found[app].deployments.values())
        apps[app] = {
            "status": _text(found[app].status),
            "replicas": {
                _text(state): n for each in deployments for state, n in each.replica_states.items()
            },
            "message": " ".join(each.message for each in deployments).strip(),
        }
    _say(out, apps=apps)


def _down(job: dict[str, Any], out: IO[str]) -> None:
    from ray import serve

    for app in job["apps"]:
        serve.delete(app)
    _say(out, done=True)


def _hold(job: dict[str, Any], out: IO[str]) -> None:
    leases: dict[tuple[str, int], _Lease] = {}
    _say(out, ready=True)
    for text in sys.stdin:
        line = json.loads(text)
        if "hold" in line:
            function, at = line["hold"]
            if (function, at) not in leases or leases[function, at].over:
                leases[function, at] = _Lease(job["apps"][function], function, at, out)
        elif "release" in line:
            found = leases.pop(tuple(line["release"]), None)
            if found is not None:
                found.end()
    for each in leases.values():
        each.end()


class _Lease:
    """Hold one lease in a thread of its own: a call that answers and stays open."""

    def __init__(self, app: str, function: str, at: int, out: IO[str]) -> None:
        self._app, self._which, self._out = app, [function, at], out
        self._call: Any = None
        self._ended = False
        self.over = False
        threading.Thread(target=self._run, name=f"lease-{function}-{at}", daemon=True).start()

    def end(self) -> None:
        self._ended = True
        if self._call is not None:
            with contextlib.suppress(Exception):
                self._call.cancel()

    def _run(self) -> None:
        from ray import serve

        why = "the lease ended"
        try:
            handle = serve.get_app_handle(self._app)
            self._call = handle.options(stream=True).lease.remote()
            for line in self._call:
                if self._ended:
                    break
                _say(self._out, lease=self._which, **line)
        except BaseException as error:
            why = _first_line(error)
        self.over = True
        if self._ended:
            with contextlib.suppress(Exception):
                self._call.cancel()
        _say(self._out, lease=self._which, lost=why)


_SAYING = threading.Lock()


def _say(out: IO[str], **fields: Any) -> None:
    with _SAYING, contextlib.suppress(OSError, ValueError):
        out.write(json.dumps(fields, separators=(",", ":")) + "\n")
        out.flush()


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray puts the cause last, below a traceback.
    return (lines[-1] if lines else type(error).__name__)[:300]


if __name__ == "__main__":
    main()
