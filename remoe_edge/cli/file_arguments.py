"""Files on a command line. What a command writes is none of what it reads, whatever names they go by."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import click

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import check_output

_MET = "remoe_edge.cli.file_arguments"  # in the context: the files that were named so far


def met(ctx: click.Context | None, path: Path, *, is_written: bool) -> None:
    """Take note of a file. Raises InputError where the command would write over another one."""
    if ctx is None or ctx.resilient_parsing or not str(path):
        return
    before: list[tuple[Path, bool]] = ctx.meta.setdefault(_MET, [])
    for other, other_is_written in before:
        if is_written:
            check_output(path, [other], is_made=False)
        elif other_is_written:
            check_output(other, [path], is_made=False)
    before.append((path, is_written))


class FileArgument(click.Path):
    """A path that the command reads; `is_written`: that it writes, too."""

    def __init__(self, *, is_written: bool = False, **kind: bool) -> None:
        super().__init__(path_type=Path, **kind)
        self._is_written = is_written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Make the path, and take note of it."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        met(ctx, path, is_written=self._is_written)
        return path


class OutputFile(FileArgument):
    """A file that the command writes."""

    def __init__(self) -> None:
        super().__init__(is_written=True, dir_okay=False)


def drawing(function: Any, needs: str | None) -> Any:
    """Refuse --plot where nothing can be drawn, before the command measures anything for it.

    `needs`: an option without which the picture would be empty. It is asked for first, since what the
    command line lacks is quicker to mend than what the machine lacks.
    """

    @functools.wraps(function)
    def checked(*args: Any, plot: Path | None, **parameters: Any) -> Any:
        if plot is not None:
            from remoe_edge.files import pictures

            if needs is not None and not parameters[needs]:
                raise InputError(f"--plot would be empty without --{needs}: give --{needs}")
            pictures.check(plot)
        return function(*args, plot=plot, **parameters)

    return checked


PATH = FileArgument()
FILE = FileArgument(dir_okay=False)
FOLDER = click.Path(file_okay=False, path_type=Path)
KEPT_FILE = FileArgument(is_written=True, dir_okay=False)  # read at the start, written at the end
