"""Write docs/reference/cli.md from the commands themselves.

python tools/cli_reference.py            # rewrite it
python tools/cli_reference.py --check    # fail if it is not what the commands say
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from remoe_edge.cli import COMMANDS, cli
from remoe_edge.cli.old_spellings import Option

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "cli.md"
HEAD = """\
# Command line

<!-- tools/cli_reference.py writes this page from the commands: do not edit it. -->

Answers and results go to stdout, everything else to stderr. The exit status is 0 if a command did
what it was asked, 1 if it could not, 2 if it was called wrongly and 130 after Ctrl-C.

The same option means the same in every command. Where a command takes a MODEL, `-m MODEL` does as
well; without either, the model that comes with remoe-edge is used. A size is written `1500MiB`,
`1.5G` or `800MB`, a time `250ms` or `0.25s`. Options that say `[,...]` take a list, with commas
between its parts.

To complete commands and options with the Tab key, put this into ~/.bashrc:

```sh
eval "$(_REMOE_EDGE_COMPLETE=bash_source remoe-edge)"
```

For zsh and fish the words are `zsh_source` and `fish_source`.
"""


def page() -> str:
    """Write the page: a section for each command, then the old spellings."""
    found = list(_commands())
    parts = [HEAD, "\n".join(_contents(found)) + "\n"]
    parts += [section(name, command) for name, command in found]
    parts.append(_old_spellings(found))
    return "\n".join(parts)


def section(name: str, command: click.Command) -> str:
    """Write what a command does, how it is called, and its options."""
    text = inspect.cleandoc(command.help or "")
    lines = [f"## {name}", "", text, "", "```text", usage(name, command), "```", ""]
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        lines += ["| option | meaning | default |", "|---|---|---|"]
        lines += [_row(each) for each in options if not each.hidden]
        lines.append("")
    return "\n".join(lines)


def usage(name: str, command: click.Command) -> str:
    """Write the line that `--help` begins with."""
    arguments = []
    for each in command.params:
        if isinstance(each, click.Argument):
            shown = each.metavar or (each.name or "").upper()
            arguments.append(shown + "..." * (each.nargs == -1))
    return " ".join(["remoe-edge", name, "[OPTIONS]", *arguments])


def _contents(found: list[tuple[str, click.Command]]) -> Iterator[str]:
    yield "| command | what it does |"
    yield "|---|---|"
    for name, command in found:
        first = inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")
        text = COMMANDS.get(name, first)
        yield f"| [{name}](#{name.replace(' ', '-')}) | {_escaped(text)} |"


def _row(option: click.Option) -> str:
    names = [*option.opts]
    if option.secondary_opts:
        names = [f"{option.opts[-1]}/{option.secondary_opts[-1]}"]
    value = _value(option)
    shown = ", ".join(f"`{name}`" for name in names[:-1])
    last = f"`{_escaped(names[-1] + value)}`"
    spelled = f"{shown}, {last}" if shown else last
    return f"| {spelled} | {_escaped(option.help or '')} | {_default(option)} |"


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + "|".join(option.type.choices)
    return f" {option.metavar}"


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    default: Any = option.default
    if option.is_flag:
        return f"`{option.opts[-1]}`" if default is True and option.secondary_opts else ""
    shown = option.show_default and default is not None
    return f"`{_escaped(str(default))}`" if shown else ""


def _escaped(text: str) -> str:
    """Keep `|` from ending a cell."""
    return text.replace("|", "\\|")


def _old_spellings(found: list[tuple[str, click.Command]]) -> str:
    rows = {
        ("bench, eval: `--json FILE`", "`-o FILE`"),
        ("bench: `--routers on`", "`--routers default`"),
    }
    by_spelling: dict[tuple[str, str], list[str]] = {}
    for name, command in found:
        for option in command.params:
            for old in option.old if isinstance(option, Option) else ():
                key = (old.name, option.spelling(old.means))
                by_spelling.setdefault(key, []).append(name)
    for (old_name, new), names in by_spelling.items():
        rows.add((f"{', '.join(names)}: `{old_name}`", f"`{new}`"))
    lines = [
        "## Old spellings", "",
        "Scripts written for version 0.1 go on working until version 0.3. A note on stderr names the",
        "new spelling.",
        "", "| until version 0.3 | now |", "|---|---|",
        *(f"| {old} | {new} |" for old, new in sorted(rows)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, in the order of `remoe-edge --help`."""
    with click.Context(cli, info_name="remoe-edge") as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            if isinstance(command, click.Group):
                for below in command.commands.values():
                    run = below.name == "run"  # what `bench` does without a word of its own
                    yield (name if run else f"{name} {below.name}"), below
            elif command is not None:
                yield name, command


def main() -> None:
    """Rewrite or check the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wanted = page()
    if not arguments.check:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(wanted, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{PAGE} is not what the commands say: run this without --check")


if __name__ == "__main__":
    main()
