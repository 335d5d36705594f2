"""Lines that a person types: editing and history on a terminal, plain lines from a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from remoe_edge.cli.terminal import say, stdin_line
from remoe_edge.files.user_folder import home

PROMPT, MORE = "> ", "| "
_HISTORY_LINES = 1000


def _history_path() -> Path | None:
    """Say where what was typed is kept: in XDG_STATE_HOME, or at home; None without either."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # unset, empty, or not to be heeded
        own = home()
        if own is None:
            return None
        state = own / ".local" / "state"
    return state / "remoe-edge" / "chat_history"


@contextlib.contextmanager
def line_editing() -> Iterator[None]:
    """Edit lines with readline, and keep their history for the next session."""
    try:
        import readline
    except ImportError:  # Python can be built without
        say("no line editing: this Python has no readline")
        yield
        return
    path = _history_path()
    if path is None:
        say("what you type is not kept for the next session: there is no home folder")
        yield
        return
    try:
        if path.exists():
            readline.read_history_file(path)
    except OSError as error:
        say(f"no history from earlier sessions: {path}: {error.strerror}")
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What people ask is theirs alone.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(path)
        except OSError as error:
            say(f"the history is not kept: {path}: {error.strerror}")


def questions() -> Iterator[str]:
    """Yield what is typed until Ctrl-D, or until Ctrl-C twice at an empty prompt.

    A line that ends in a backslash goes on in the next.
    """
    interactive = sys.stdin.isatty()
    with line_editing() if interactive else contextlib.nullcontext():
        warned = False
        while True:
            try:
                text = _read(interactive)
            except EOFError:
                if interactive:
                    click.echo(err=True)
                return
            except KeyboardInterrupt:
                click.echo(err=True)
                if warned or not interactive:
                    return
                warned = True
                say("Ctrl-C again, Ctrl-D or /exit to leave")
                continue
            warned = False
            yield text


def _read(interactive: bool) -> str:
    lines = [_line(PROMPT, interactive)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_line(MORE, interactive))
    return "\n".join(lines)


def _line(prompt: str, interactive: bool) -> str:
    if not interactive:
        return stdin_line()
    if sys.stdout.isatty():
        return input(prompt)  # readline must know the prompt to redraw the line
    click.echo(prompt, nl=False, err=True)
    return input()
