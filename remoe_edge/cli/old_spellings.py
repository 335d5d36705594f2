"""Old spellings of options: still understood for one version, not shown, and named in a note.

This file goes with version 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from remoe_edge.cli.terminal import say

Function = TypeVar("Function", bound=Callable[..., Any])


class Decorator(Protocol):
    """What adds an option to a command."""

    def __call__(self, function: Function, /) -> Function:
        """Add it."""


@dataclass(frozen=True)
class Old:
    """Name an old spelling of an option; `means` is the value it stands for, if it took none."""

    name: str
    means: Any = None

    @property
    def slot(self) -> str:
        """Name where the parser puts its value: apart from the new one's, to know who spoke."""
        return f"old spelling {self.name}"


class Option(click.Option):
    """An option that also understands its old spellings, and tells which of several values counts."""

    def __init__(self, *args: Any, old: Sequence[Old] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.old = tuple(old)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Have the parser take the old spellings too; help and completion do not list them."""
        is_one = not (self.multiple or self.is_flag or self.count)
        self.multiple = self.multiple or is_one  # to the parser: the last would hide all before it
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.multiple = self.multiple and not is_one
        for each in self.old:
            action = "store" if each.means is None else "store_const"
            parser.add_option(
                obj=self, opts=[each.name], dest=each.slot, action=action, const=each.means
            )

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        """Take the last value, and that of an old spelling where the new one is not given."""
        given = opts.get(self.name or "")
        if isinstance(given, list) and not self.multiple:
            opts = {**opts, str(self.name): given[-1]}
            if len(set(given)) > 1:
                self._tell_of_repeats(ctx, given)
        value, source = super().consume_value(ctx, opts)
        for each in self.old:
            if each.slot in opts:
                tell(ctx, each.name, self.spelling(each.means))
                if source != ParameterSource.COMMANDLINE:
                    value, source = opts[each.slot], ParameterSource.COMMANDLINE
        return value, source

    def _tell_of_repeats(self, ctx: click.Context, given: Sequence[str]) -> None:
        if ctx.resilient_parsing:
            return
        joined = f"; for all write {','.join(given)}" if self.type.name.endswith(" list") else ""
        say(f"note: {self.spelling()} is given {len(given)} times, and the last counts{joined}")

    def spelling(self, means: Any = None) -> str:
        """Write the option as it is spelled now."""
        names = self.secondary_opts if means is False else self.opts
        return "/".join(names)


def option(*names: str, **settings: Any) -> Decorator:
    """Declare an option as `click.option` does; `old` lists its old spellings."""
    return click.option(*names, cls=Option, **settings)


class JsonPathCommand(click.Command):
    """A command that still takes `--json FILE.json` for `-o FILE.json`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the old spelling before the parser, to which `--json` is a flag, sees it."""
        words, found = output_spelled_out(args)
        if found:
            tell(ctx, "--json FILE", "-o/--output FILE")
        return super().parse_args(ctx, words)


def output_spelled_out(args: Sequence[str]) -> tuple[list[str], bool]:
    """Write `-o FILE` for `--json=FILE` and `--json FILE.json`; say whether there was one.

    Without the ending the next word may as well be the model, so it is left to be that.
    """
    made: list[str] = []
    words = list(args)
    found = False
    while words:
        word = words.pop(0)
        if word == "--":
            return [*made, word, *words], found
        if word.startswith("--json="):
            made += ["--output", word.partition("=")[2]]
            found = True
        elif word == "--json" and words and _is_json_path(words[0]):
            made += ["--output", words.pop(0)]
            found = True
        else:
            made.append(word)
    return made, found


def _is_json_path(word: str) -> bool:
    return word.endswith(".json") and not word.startswith("-")


def tell(ctx: click.Context, old: str, new: str) -> None:
    """Say in a line how an old spelling is written now."""
    if not ctx.resilient_parsing:
        say(f"note: {old} is now {new}; the old spelling ends with version 0.3")
