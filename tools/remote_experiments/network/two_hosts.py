"""Make two namespaces and the line between them, as root; take them away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_RELAY = Path(__file__).with_name("relay.cc")
ENGINE, WORKER = "10.77.0.1", "10.77.0.2"
_BURST_BYTES = 256 << 10
_QUEUE = "20ms"


class NoNetwork(Exception):
    """Say what this machine lacks."""


@dataclass
class TwoHosts:
    """Hold both hosts' namespaces and the relay's input, by which the line goes down and up."""

    engine: str
    worker: str
    _control: IO[str]

    def on_engine(self, command: Sequence[str]) -> list[str]:
        """Give the command line that runs on the engine's host."""
        return inside(self.engine, command)

    def on_worker(self, command: Sequence[str]) -> list[str]:
        """Give the command line that runs on the worker's host."""
        return inside(self.worker, command)

    def line(self, up: bool) -> None:
        """Have the line carry packets, or drop each of them."""
        self._control.write("up\n" if up else "down\n")
        self._control.flush()

    def rate(self, bits_per_s: float) -> None:
        """Hold both directions to a rate."""
        for host in (self.engine, self.worker):
            limit = (
                "tc", "qdisc", "replace", "dev", "line", "root", "tbf", "rate",
                f"{round(bits_per_s)}bit", "burst", str(_BURST_BYTES), "latency", _QUEUE,
            )  # fmt: skip
            _run(*inside(host, limit))


def inside(name: str, command: Sequence[str]) -> list[str]:
    """Give the command line that runs in a namespace."""
    # Not `ip netns exec`, which mounts /sys anew: cgroups' limits are read there.
    return ["nsenter", f"--net=/var/run/netns/{name}", *command]


def missing() -> str | None:
    """Say what is missing to make hosts here; None if nothing is."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for program in ("ip", "tc", "nsenter", "c++"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return None


@contextlib.contextmanager
def two_hosts(scratch: Path, *, delay_us: int, bits_per_s: float) -> Iterator[TwoHosts]:
    """Make two hosts whose packets take `delay_us` each way. Raises NoNetwork."""
    why = missing()
    if why is not None:
        raise NoNetwork(why)
    program = scratch / "relay"
    _run("c++", "-std=c++17", "-O2", str(_RELAY), "-o", str(program))
    names = [f"remoe-{os.getpid()}-{host}" for host in ("engine", "worker")]
    with contextlib.ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        relay = subprocess.Popen(
            [program, names[0], ENGINE, names[1], WORKER, str(delay_us)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(_end, relay)
        assert relay.stdout is not None
        assert relay.stdin is not None
        if relay.stdout.readline() != "ready\n":
            assert relay.stderr is not None
            raise NoNetwork(f"no line: {relay.stderr.read().strip()}")
        hosts = TwoHosts(names[0], names[1], relay.stdin)
        hosts.rate(bits_per_s)
        yield hosts


def _end(relay: subprocess.Popen[str]) -> None:
    relay.terminate()
    relay.wait()
    for stream in (relay.stdin, relay.stdout, relay.stderr):
        if stream is not None:
            stream.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNetwork(f"{' '.join(command[:4])} ...: {done.stderr.strip()}")
