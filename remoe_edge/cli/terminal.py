"""What goes where: answers to stdout, the rest to stderr, neither able to drive the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from remoe_edge.errors import InputError
from remoe_edge.files.reading import MOST_BYTES

# C0 without tab and newline, DEL, and C1: what a terminal would obey instead of showing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape(text: str) -> str:
    """Show control characters as \\xNN, all but newline and tab."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def tolerate_any_text() -> None:
    """Let stdin give, and stdout and stderr take, text that their encoding does not have."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")


def open_closed_streams() -> None:
    """Give stdin, stdout and stderr something where this process was started without them.

    A file opened later would take their numbers, and what llama.cpp prints would go into it. An answer
    that nobody can read is an error, so stdout gets what cannot be written to.
    """
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)
    ):  # fmt: skip
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.close(number)  # what Python could make nothing of
            opened = os.open(os.devnull, flags)
            assert opened == number, "the lowest free number"
            os.set_inheritable(number, True)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def stdin_text() -> str:
    """Read stdin to its end. Raises InputError where it has none."""
    return _ended(sys.stdin.read(MOST_BYTES + 1))


def stdin_line() -> str:
    """Read a line of stdin. Raises EOFError after the last, InputError where it has no end."""
    line = _ended(sys.stdin.readline(MOST_BYTES + 1))
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _ended(text: str) -> str:
    if len(text) > MOST_BYTES:
        raise InputError(f"stdin has no end: {MOST_BYTES >> 20} MiB were read")
    return text


def as_text(argument: str) -> str:
    """Replace what of an argument is no UTF-8; Python carries such bytes as lone surrogates."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def say(line: str) -> None:
    """Write one line to stderr."""
    click.echo(escape(line), err=True)


def write(pieces: Iterable[str], written: list[str]) -> None:
    """Write an answer to stdout as it comes, and append its pieces to `written`.

    Its last line is ended, also when something cuts it short.
    """
    shown = escape if sys.stdout.isatty() else str
    try:
        for piece in pieces:
            written.append(piece)
            click.echo(shown(piece), nl=False)
    except OSError:  # whoever read it has gone
        raise
    except BaseException:
        _end_line(written)
        raise
    _end_line(written)


def _end_line(written: list[str]) -> None:
    if not (written and written[-1].endswith("\n")):
        click.echo()


def print_tables(*tables: Any, width: int, least_width: int = 0) -> None:
    """Print tables of rich on stdout, where names of models and files are text and nothing else.

    width: of lines that go to no terminal, which has none of its own. least_width: of a terminal's.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **settings: Any) -> Text:
            # Whoever named a model or a file wrote no markup, no emoji and nothing for the terminal.
            return super().render_str(escape(text), **{**settings, "markup": False, "emoji": False})

    console = Plain()
    console.width = max(console.width, least_width) if console.is_terminal else width
    for table in tables:
        console.print(table)


def lost_output() -> OSError | None:
    """Write what stdout still holds; where that fails, drop it and return the reason.

    Python would try again as it exits, print that it failed, and exit with 120.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return error
    return None


def show_progress(text: str) -> None:
    """Write over the last line of stderr, if that is a terminal; an empty text clears it."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{escape(text)}", nl=False, err=True)


@contextlib.contextmanager
def loading_bar(name: str, *, shown: bool = True) -> Iterator[Callable[[float], bool]]:
    """Give a callback that draws a fraction on stderr, if that is a terminal."""
    if not (shown and sys.stderr.isatty()):
        # A callback all the same: between two calls is where Ctrl-C can end the loading.
        yield lambda fraction: True
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns: tuple[Any, ...] = (
        TextColumn("loading {task.description}", markup=False), BarColumn(), TaskProgressColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(name), total=1.0)

        def report(fraction: float) -> bool:
            progress.update(task, completed=fraction)
            return True

        yield report
