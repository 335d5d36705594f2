"""`remoe-edge serve`: answer clients over HTTP, and in a browser."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.engine_options import engine_options, open_engine
from remoe_edge.cli.old_spellings import option
from remoe_edge.cli.serve_extra import needing_serve
from remoe_edge.cli.telemetry_options import billed, telemetry_options, watching
from remoe_edge.cli.terminal import say
from remoe_edge.errors import InputError
from remoe_edge.files.reading import read_whole

if TYPE_CHECKING:
    from remoe_edge.serve.engine_thread import EngineThread
    from remoe_edge.serve.figures import Figures
    from remoe_edge.telemetry.metrics import Metrics

KEY_VARIABLE = "REMOE_EDGE_API_KEY"


@click.command(name="serve")
@engine_options
@telemetry_options
@option(
    "--host", default="127.0.0.1", show_default=True, metavar="HOST",
    help="Listen here; 0.0.0.0 lets other machines in, which wants an API key.",
)  # fmt: skip
@option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="PORT",
    help="Listen at this port; 0 takes a free one.",
)  # fmt: skip
@option(
    "--api-key", metavar="KEY",
    help=f"Let in only who sends this key. Other users of this machine can see it here: {KEY_VARIABLE} "
    "in the environment and --api-key-file hide it.",
)  # fmt: skip
@option(
    "--api-key-file", type=options.FILE, metavar="FILE", help="Read the API key from this file."
)
@option(
    "--cors", multiple=True, metavar="ORIGIN",
    help="Let pages of this origin (http://HOST:PORT, or * for all) ask; may be repeated.",
)  # fmt: skip
@option(
    "--tls-certificate", type=options.FILE, metavar="FILE", help="Speak TLS with this PEM file."
)
@option("--tls-key", type=options.FILE, metavar="FILE", help="The certificate's private key (PEM).")
@option(
    "--parallel", default="auto", show_default=True, metavar="N",
    help="Answer so many conversations at a time, each with --ctx tokens of its own; auto takes as many "
    "as an eighth of the memory holds, up to 8.",
)  # fmt: skip
@option(
    "--max-pause", default="5s", show_default=True, metavar="TIME",
    help="Let an answer stand still for so long at most while others are made, as far as a single step "
    "allows: longer turns read less from storage.",
)  # fmt: skip
@option(
    "--max-wait", default="180s", show_default=True, metavar="TIME",
    help="Begin a request's prompt after so long at most, once it has a place; until then it may wait "
    "for others to end, where storage is the limit.",
)  # fmt: skip
@option(
    "--together", default="auto", show_default=True, metavar="N",
    help="Compute at most so many answers in one step; auto measures what is fastest. With 1, each "
    "answer has the bits that it has alone.",
)  # fmt: skip
@option(
    "--keep-states", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Keep conversations here, so that they go on where they were after a restart. What was said can "
    "be read from the files.",
)  # fmt: skip
@option(
    "--keep-size", default="2GiB", show_default=True, metavar="SIZE",
    help="What --keep-states may take; the longest unused conversations go first.",
)  # fmt: skip
@option(
    "--queue", "queue_limit", type=click.IntRange(0, 10000), default=16, show_default=True,
    metavar="N", help="Let so many requests wait; what comes beside them is told to come again.",
)  # fmt: skip
@option(
    "--grace", "grace_s", type=click.IntRange(0, 86400), default=30, show_default=True,
    metavar="SECONDS", help="When stopped, let answers go on for so long.",
)  # fmt: skip
@option("--name", metavar="NAME", help="What clients call the model; its file's name if not given.")
def command(
    model: Path,
    telemetry: Path | None,
    telemetry_hz: float,
    metrics: str | None,
    price: str | None,
    api_key: str | None,
    api_key_file: Path | None,
    cors: tuple[str, ...],
    tls_certificate: Path | None,
    tls_key: Path | None,
    host: str,
    port: int,
    parallel: str,
    max_pause: str,
    max_wait: str,
    together: str,
    keep_states: Path | None,
    keep_size: str,
    queue_limit: int,
    grace_s: int,
    name: str | None,
    **engine_settings: Any,
) -> None:
    """Serve MODEL to clients of OpenAI's and Anthropic's protocols, and as a chat page in a browser.

    Several conversations are answered at a time, and others wait. Needs `pip install
    remoe-edge[serve]`.
    """
    with needing_serve("serve"):
        from remoe_edge.serve.app import Server
        from remoe_edge.serve.listen import Listener
    from remoe_edge.serve.figures import Figures
    from remoe_edge.serve.settings import ServeSettings
    from remoe_edge.telemetry.metrics_server import is_loopback
    from remoe_edge.units import parse_bytes

    settings = ServeSettings(
        host=host, port=port, api_key=_key(api_key, api_key_file), cors=cors,
        certificate=tls_certificate, private_key=tls_key, queue_limit=queue_limit, grace_s=grace_s,
    )  # fmt: skip
    n_places = _count("--parallel", parallel)
    if engine_settings["draft"] != "off":
        n_places = _one_drafted(engine_settings["draft"], n_places, keep_states)
    schedule = {
        "max_pause_s": _seconds("--max-pause", max_pause),
        "max_wait_s": _seconds("--max-wait", max_wait),
        "most_together": _count("--together", together),
        "keep_states": None if keep_states is None else (keep_states, parse_bytes(keep_size)),
    }
    if not model.is_file():
        raise InputError(f"no model at {model}")
    figures = Figures()
    with (
        watching(
            model, telemetry, telemetry_hz, metrics, price, engine_settings["deployment"]
        ) as watched,
        _metrics(model) as own,
    ):
        metering = watched["metering"]
        observers = [*watched.pop("telemetry", []), own]
        listening = threading.Event()  # a port that is taken shall not cost the loading of a model

        def load() -> Any:
            listening.wait()
            return open_engine(
                model, telemetry=observers, parallel=n_places, **watched, **engine_settings
            )

        conversations = _conversations(load, n_places, schedule, queue_limit, figures)
        server = Server(
            conversations,
            settings,
            model=name or model.stem,
            figures=figures,
            engine_figures=lambda: [*own.families(), *billed(metering)],
            power_w=own.power_w,
        )
        listener = Listener(server.app(), settings)
        say(f"listening at {listener.url}")
        if settings.api_key is None and not is_loopback(listener.host):
            say(
                "whoever reaches this port may use the model: --api-key-file lets in whom you choose"
            )
        listening.set()
        _follow(conversations, listener.url, listener.stop)
        listener.run()
        conversations.close()
    if conversations.failure is not None:
        raise conversations.failure


def _one_drafted(draft: str, n_places: int, keep_states: Path | None) -> int:
    """Give the conversations at a time where tokens are guessed: one. Refuse what needs several."""
    for given, which in ((n_places > 1, "--parallel"), (keep_states is not None, "--keep-states")):
        if given:
            raise InputError(
                f"--draft {draft} guesses for one conversation at a time, and {which} is for several: "
                "leave one of them out"
            )
    return 1


def _count(name: str, text: str) -> int:
    """Read a number above 0, or auto, which is 0."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise click.BadParameter(f"'{text}' is no number above 0, nor auto", param_hint=name)
    return int(text)


def _seconds(name: str, text: str) -> float:
    from remoe_edge.units import parse_ms

    if text.isdecimal():
        text += "s"
    try:
        return parse_ms(text) / 1000
    except InputError as error:
        raise click.BadParameter(str(error), param_hint=name) from None


def _conversations(
    load: Callable[[], Any],
    n_places: int,
    schedule: Mapping[str, Any],
    queue_limit: int,
    figures: Figures,
) -> EngineThread:
    from remoe_edge.serve.one_at_a_time import OneAtATime
    from remoe_edge.serve.side_by_side import SideBySide

    if n_places == 1 and schedule["keep_states"] is None:
        return OneAtATime(load, queue_limit=queue_limit, figures=figures, note=say)
    return SideBySide(load, queue_limit=queue_limit, figures=figures, note=say, **schedule)


def _follow(conversations: EngineThread, url: str, stop: Callable[[], None]) -> None:
    """Say when the model is ready; where it cannot be loaded, end the server."""

    def follow() -> None:
        while conversations.state == "loading":
            time.sleep(0.05)
        if conversations.state == "ready":
            for note in conversations.notes:
                say(note)
            say(f"ready: chat at {url}, clients at {url}v1")
        elif conversations.failure is not None:
            stop()

    threading.Thread(target=follow, name="remoe-edge-ready", daemon=True).start()


@contextlib.contextmanager
def _metrics(model: Path) -> Iterator[Metrics]:
    """Have figures of the engine, as long as the block runs."""
    from remoe_edge.telemetry import Sampler
    from remoe_edge.telemetry.metrics import Metrics

    with Sampler(model, keep=2) as sampler:
        yield Metrics(sampler)


def _key(given: str | None, file: Path | None) -> str | None:
    if given is not None and file is not None:
        raise click.UsageError("--api-key and --api-key-file: give one of them")
    if file is None:
        return given if given is not None else os.environ.get(KEY_VARIABLE)
    try:
        return read_whole(file, "API key").decode().strip()
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text: it holds the API key in one line") from None
