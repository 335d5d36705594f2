"""The options that record or serve what a run costs, and the observers made from them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoe_edge.cli import options, placement_options
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import Decorator, Function, option
from remoe_edge.cli.serve_extra import needing_serve
from remoe_edge.cli.terminal import say

if TYPE_CHECKING:
    from remoe_edge.deploy.metering import Metering
    from remoe_edge.engine.observers import Observer
    from remoe_edge.telemetry.families import Family

_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--telemetry", type=options.OutputFile(), metavar="FILE",
        help="Record each token and the machine (power, temperatures, memory) as JSON lines.",
    ),
    option(
        "--telemetry-hz", type=Number(1, 10), default=2, show_default=True, metavar="HZ",
        help="How often in a second to look at the machine.",
    ),
    option(
        "--metrics", metavar="[HOST:]PORT",
        help="Serve /metrics for Prometheus; without HOST, to this machine alone.",
    ),
    placement_options.price(),
)  # fmt: skip


def telemetry_options(function: Function) -> Function:
    """Add the options of `watching` to a command."""
    for each in reversed(_OPTIONS):
        function = each(function)
    return function


@contextlib.contextmanager
def watching(
    model: Path,
    telemetry: Path | None,
    hz: float,
    metrics: str | None,
    price: str | None = None,
    deployment: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Give the settings that make an engine be watched; what was started ends with the block.

    An engine is metered where there are prices: those of `price`, or else those of its deployment.
    """
    from remoe_edge.telemetry.status import default_folder

    # Nothing looks on at each token, and nothing is imported for it, where nothing has a price.
    metering = None if price is None and deployment is None else _metering(price)
    settings = {
        "publish": default_folder(os.environ.get("XDG_RUNTIME_DIR")),
        "metering": metering,
    }
    if telemetry is None and metrics is None:
        yield settings
        return
    from remoe_edge.errors import InputError
    from remoe_edge.telemetry import Sampler
    from remoe_edge.telemetry.recording import Recording

    if not model.is_file():  # before a file is made and idle power is measured for nothing
        raise InputError(f"no model at {model}")
    if metrics is not None:
        with needing_serve("--metrics"):
            from remoe_edge.telemetry.metrics import Metrics
            from remoe_edge.telemetry.metrics_server import MetricsServer
    observers: list[Observer] = []
    with contextlib.ExitStack() as stack:
        sampler = Sampler(model, hz=hz, keep=2)
        stack.callback(sampler.stop)
        if metrics is not None:
            figures = Metrics(sampler)
            server = MetricsServer(lambda: [*figures.families(), *billed(metering)], metrics)
            stack.callback(server.close)
            say(f"metrics at {server.url}")
            observers.append(figures)
        if telemetry is not None:
            recording = Recording.start(telemetry, sampler=sampler, note=say)
            stack.callback(recording.on_close)
            observers.append(recording)
        elif missing := sampler.start().missing_line():
            say(missing)
        yield {**settings, "telemetry": observers}


def billed(metering: Metering | None) -> list[Family]:
    """Give the figures of a meter, where there is one."""
    return [] if metering is None else metering.families()


def _metering(price: str | None) -> Metering:
    """Make an engine's meter; without prices it has those of a deployment."""
    from remoe_edge.deploy.metering import Metering
    from remoe_edge.placement.price import load

    return Metering(None if price is None else load(price))
