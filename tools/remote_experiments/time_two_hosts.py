"""Time a token with a worker on another host against storage alone and everything resident.

Two network namespaces stand for the hosts, with a line of 2 x 0.2 ms between them; the engine is in a
box whose memory is limited, and whose reads may be. Arms take turns, A B C A B C, so that what the
machine does meanwhile falls on all. The same tokens come out of every arm, or the record says so.

    python tools/remote_experiments/time_two_hosts.py MODEL -o two-hosts.json   (as root)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from remoe_edge.bench.box import Limits, boxed
from remoe_edge.cli.results import print_json, write_json
from remoe_edge.machine.description import describe
from remoe_edge.machine.disk import disk_of
from remoe_edge.remote.keys import make_keys
from remoe_edge.units import parse_bytes
from remote_experiments.network.two_hosts import WORKER, NoNetwork, TwoHosts, two_hosts

PORT = 7700
_ENGINE = Path(__file__).with_name("one_engine.py")


@dataclass(frozen=True)
class Arm:
    """Name an arm: bits a second of the line, 0 without a worker; bytes a second of the disk."""

    name: str
    bits_per_s: float = 0
    read_bytes_per_s: int | None = None
    resident: bool = False


def arms(slow_disk: int) -> list[Arm]:
    """List the arms that the targets compare."""
    return [
        Arm("storage"),
        Arm("1 Gbit", 1e9),
        Arm("slow storage", 0, slow_disk),
        Arm("1 Gbit, slow storage", 1e9, slow_disk),
        Arm("10 Gbit", 1e10),
        Arm("resident", resident=True),
    ]


@contextlib.contextmanager
def serving(hosts: TwoHosts, asked: argparse.Namespace, keys: Path) -> Iterator[None]:
    """Run a worker on its host until the block ends."""
    command = [
        sys.executable, "-m", "remoe_edge.cli", "worker", str(asked.model), "--experts",
        asked.experts, "--memory", asked.worker_memory, "--listen", f"0.0.0.0:{PORT}", "--keys",
        str(keys / "worker.pem"), "--move-rate", asked.move_rate, "-t", str(asked.worker_threads),
    ]  # fmt: skip
    with subprocess.Popen(hosts.on_worker(command), stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        line = running.stderr.readline()
        try:
            if "serving" not in line:
                raise SystemExit(f"no worker: {line}{running.stderr.read()}")
            # Nobody else reads what it says.
            threading.Thread(target=running.stderr.read, daemon=True).start()
            yield
        finally:
            running.terminate()
            running.wait()


def run(hosts: TwoHosts, arm: Arm, asked: argparse.Namespace, keys: Path) -> dict[str, Any]:
    """Run an engine once, in its box."""
    memory = None if arm.resident else asked.memory_bytes
    command = [
        sys.executable, str(_ENGINE), str(asked.model), "--cache",
        "100%" if arm.resident else "auto", "--warm", str(asked.warm), "--tokens",
        str(asked.tokens), "--threads", str(asked.threads),
    ]  # fmt: skip
    if arm.bits_per_s:
        hosts.rate(arm.bits_per_s)
        command += ["--peers", f"{WORKER}:{PORT}", "--keys", str(keys / "client.pem")]
    limits = Limits(memory, arm.read_bytes_per_s)
    with boxed(limits, disk_of(asked.model)) as box:
        done = subprocess.run(
            box.command(hosts.on_engine(command)), capture_output=True, text=True, check=False
        )
        account = asdict(box.account(0)) if memory is not None else None
    if done.returncode != 0:
        raise SystemExit(f"{arm.name}: {done.stderr[-2000:]}")
    return {"arm": arm.name, **json.loads(done.stdout), "box": account}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Give each arm's median, and the ratios that the targets are about."""
    by_arm: dict[str, list[float]] = {}
    for each in runs:
        by_arm.setdefault(each["arm"], []).append(each["tpot_ms"])
    tpot = {name: round(median(values), 3) for name, values in by_arm.items()}
    ratios = {}
    for name, over, under in (
        ("1 Gbit against storage", "storage", "1 Gbit"),
        ("1 Gbit against slow storage", "slow storage", "1 Gbit, slow storage"),
        ("10 Gbit against resident", "10 Gbit", "resident"),
    ):
        if over in tpot and under in tpot:
            ratios[name] = round(tpot[over] / tpot[under], 3)
    same = all(each["tokens"] == runs[0]["tokens"] for each in runs)
    return {"tpot_ms": tpot, "ratios": ratios, "same_tokens": same}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--warm", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker-threads", type=int, default=1)
    parser.add_argument("--memory", default="40%", help="of the model's file, or a size")
    parser.add_argument("--experts", default="AUTO")
    parser.add_argument("--worker-memory", default="", help="default: 70%% of the model's file")
    parser.add_argument("--move-rate", default="1GiB")
    parser.add_argument("--slow-disk", default="300MiB")
    parser.add_argument("--delay-us", type=int, default=200)
    parser.add_argument("--arms", default="", help="names, separated by semicolons; all by default")
    asked = parser.parse_args(arguments)
    size = asked.model.stat().st_size
    share = asked.memory.endswith("%")
    asked.memory_bytes = (
        int(size * float(asked.memory[:-1]) / 100) if share else parse_bytes(asked.memory)
    )
    asked.worker_memory = asked.worker_memory or str(int(size * 0.7))
    wanted = {name.strip() for name in asked.arms.split(";") if name.strip()}
    chosen = [arm for arm in arms(parse_bytes(asked.slow_disk)) if not wanted or arm.name in wanted]
    runs = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        keys = Path(scratch) / "keys"
        make_keys(keys)
        try:
            hosts = stack.enter_context(
                two_hosts(Path(scratch), delay_us=asked.delay_us, bits_per_s=1e9)
            )
        except NoNetwork as error:
            print(f"no two hosts here: {error}", file=sys.stderr)
            return 1
        for turn in range(asked.rounds):
            for arm in chosen:
                with contextlib.ExitStack() as worker:
                    if arm.bits_per_s:
                        worker.enter_context(serving(hosts, asked, keys))
                    found = run(hosts, arm, asked, keys)
                runs.append({"round": turn, **found})
                print(f"{turn} {arm.name}: {found['tpot_ms']:.2f} ms", file=sys.stderr)
    settings = {
        name: value.name if isinstance(value, Path) else str(value)
        for name, value in vars(asked).items()
    }
    record = {
        "settings": settings, "machine": describe(), **summary(runs), "runs": runs,
    }  # fmt: skip
    write_json(record, asked.output)
    print_json(summary(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
