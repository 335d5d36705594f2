"""`remoe-edge worker`: hold experts in memory and compute them for engines elsewhere."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.terminal import say
from remoe_edge.units import mib

if TYPE_CHECKING:
    from remoe_edge.remote.worker import Worker


@click.command(name="worker")
@options.model
@option(
    "--experts",
    default="all",
    show_default=True,
    metavar="LIST|PLAN|AUTO",
    help="The experts to serve: all, 30% (the first of every layer), LAYER:FIRST-LAST, as in "
    "3:0-7,*:12; PLAN.json, what `remoe-edge plan --price ... -o PLAN.json` leaves to others; or AUTO: "
    "what engines wish for, as many as --memory holds, beginning with the hot ones of --profile.",
)
@options.memory(
    required=True, more="It is for the experts; if they need more, the error says how much."
)
@option(
    "--listen",
    default="127.0.0.1:7700",
    show_default=True,
    metavar="HOST:PORT",
    help="Where engines connect; 0.0.0.0 is every address of this machine, port 0 a free one. Beyond "
    "this machine --keys is needed.",
)
@options.keys()
@option(
    "--move-rate",
    default="32MiB",
    show_default=True,
    metavar="SIZE",
    help="With AUTO: read at most so much a second of what engines wish for.",
)
@options.profile()
@options.threads()
@options.repack(default=False, more="Do as the engines do that will connect.")
@options.io(old=[])
@options.direct()
@option(
    "--supervised",
    is_flag=True,
    help="Report to the program that started this: JSON lines on stdout, every second with a check of "
    "its own bits. It ends when stdin does.",
)
def command(
    model: Path,
    experts: str,
    memory: str,
    listen: str,
    peer_keys: Path | None,
    move_rate: str,
    profile: Path | None,
    threads: int | None,
    repack: bool,
    io: str,
    direct: bool,
    supervised: bool,
) -> None:
    """Hold some experts of MODEL in memory, and compute them for engines that name this worker.

    Nothing else of the model is loaded. Engines connect with --peers. SIGTERM and Ctrl-C stop it:
    what was asked is still answered.
    """
    from remoe_edge.remote.worker import Worker

    worker = Worker(
        model, experts=experts, memory=memory, listen=listen, keys=peer_keys, move_rate=move_rate,
        profile=profile, threads=threads, repack=repack, io=io, direct=direct,
    )  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    say(
        f"serving {worker.n_experts} experts ({mib(worker.budget_bytes)}) of {model.name} on "
        f"{worker.address}"
    )
    if supervised:
        from remoe_edge.remote.supervised import Report, stop_with_input

        stop_with_input(worker, sys.stdin.buffer)
        worker.wait(Report(worker, sys.stdout))
    else:
        worker.wait(lambda: _tell(worker))
    counts = worker.counts()
    say(f"stopped after {counts['answers']} answers ({counts['rows']} rows)")


def _tell(worker: Worker) -> None:
    for line in worker.take_lines():
        say(line)
