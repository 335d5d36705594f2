"""Every command line in the pages is one that `remoe-edge` takes, and the reference is up to date."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import cli_reference
import readme_numbers
from remoe_edge.cli import COMMANDS, cli
from rules.docs import pages

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^[ \t]*(```|~~~)[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.M | re.S)
_INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
_SEPARATORS = set(";&|()<>")
# What may come before a command on its line.
_BEFORE = re.compile(r"sudo|nice|time|do|then|\w+=.*")
# Records keep the words of their day.
_RECORDS = ("docs/experiments/", "docs/design-decisions.md")


@dataclass(frozen=True)
class Line:
    """A command line in a page: the words after `remoe-edge`."""

    page: str
    words: tuple[str, ...]
    whole: bool  # to be typed as it stands; a mention in a sentence may leave things out
    record: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def lines_of(page: str, text: str) -> Iterator[Line]:
    """Find the command lines of a page, in fenced code and in inline code."""
    is_record = page.startswith(_RECORDS)
    generated = text.partition(readme_numbers.BEGIN)[2].partition(readme_numbers.END)[0]
    for fence in _FENCE.finditer(text):
        if fence[2] not in ("python", "json", "html"):
            record = is_record or fence[0] in generated
            for words in typed(fence[3]):
                yield Line(page, words, True, record)
    for span in _INLINE.finditer(_FENCE.sub("", text)):
        words = tuple(_shell(" ".join(span[2].split())))
        if words[:1] == ("remoe-edge",) and len(words) > 1:
            yield Line(page, words[1:], False, is_record)
        elif len(words) > 1 and words[0] in COMMANDS:
            yield Line(page, words, False, is_record)


def typed(code: str) -> Iterator[tuple[str, ...]]:
    """Give the calls of `remoe-edge` in lines for a shell."""
    for line in code.replace("\\\n", " ").splitlines():
        call: list[str] | None = None
        before: list[str] = []
        for word in [*_shell(line.strip().removeprefix("$ ")), ";"]:
            if set(word) <= _SEPARATORS:
                if call is not None:
                    yield tuple(call)
                call, before = None, []
            elif call is not None:
                call.append(word)
            elif word == "remoe-edge" and all(_BEFORE.fullmatch(each) for each in before):
                call = []
            else:
                before.append(word)


def _shell(line: str) -> list[str]:
    """Cut a line as a shell does, its comment left out; give nothing for what no shell can read."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
    reader.whitespace_split = True
    try:
        return list(reader)
    except ValueError:  # an apostrophe: text
        return []


def problem(line: Line) -> str | None:
    """Parse a command line without running it; say what is wrong."""
    command: click.Command = cli
    context = click.Context(cli, info_name="remoe-edge")
    words = list(line.words)
    try:
        while isinstance(command, click.Group):
            if words and words[0] in ("--version", "--help", "-h"):
                return None
            if not words and not line.whole:
                return None  # `remoe-edge bench`, a command with others below it
            for default in ("run", "up"):  # as bench and deploy do
                if default in command.commands and not {*words[:1]} & {*command.commands}:
                    words = [default, *words]
            name, found, words = command.resolve_command(context, words or [""])
            assert found is not None
            command = found
            context = click.Context(command, info_name=name, parent=context)
        with command.make_context(context.info_name, list(words), parent=context.parent):
            return _no_file(command, words, line)
    except click.exceptions.Exit:
        return None  # --help
    except (click.MissingParameter, click.BadOptionUsage) as error:
        # A mention may leave out what a command needs; what it has must exist.
        return error.format_message() if line.whole else _no_file(command, words, line)
    except click.UsageError as error:
        return error.format_message()


def _no_file(command: click.Command, words: list[str], line: Line) -> str | None:
    """Tell a mention of `profile fit` from one of `profile x.trace`: a bare word is no file's name."""
    first = next(iter(words), "")
    if line.whole or not re.fullmatch("[a-z]{2,}", first):
        return None
    return f"'{first}' is no command of {command.name}"


LINES = [
    line
    for path in pages(ROOT)
    for line in lines_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    # The reference shows how commands are called in general, and is checked as a whole.
    if not line.page.startswith(("CHANGELOG", "docs/reference/"))
]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_line_of_the_pages_parses(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    assert problem(line) is None
    said = capsys.readouterr().err
    assert line.record or said == ""  # no old spelling


def test_there_are_command_lines_to_check() -> None:
    assert len(LINES) > 60
    assert {line.page for line in LINES} > {"README.md", "docs/tuning.md", "models/README.md"}
    used = {line.words[0] for line in LINES if line.words}
    assert used == set(COMMANDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```sh\nremoe-edge chat -m x.gguf --cahce 30%\n```", "No such option"),
        ("```sh\nremoe-edge chta\n```", "No such command"),
        ("```\n$ sudo remoe-edge convert marge a b\n```", "No such command"),
        ("```sh\nremoe-edge trace x.gguf   # a trace\n```", "Missing option"),
        ("```sh\npip install . && remoe-edge chat --threads two\n```", "not a valid integer"),
        ("```sh\nfor x in 1 2; do remoe-edge info $x --jsn; done\n```", "No such option"),
        ("```sh\nremoe-edge bench x.gguf \\\n  --arm stock\n```", "No such option"),
        ("Type `remoe-edge\nsimulate t --polciy lru`.", "No such option"),
        ("With `chat --proflie FILE` it is kept.", "No such option"),
        ("With `bench compar a b`", "unexpected extra arguments"),
        ("What `remoe-edge profile fit` made.", "'fit' is no command of profile"),
    ],
)
def test_what_does_not_exist_is_found(text: str, said: str) -> None:
    (line,) = lines_of("page.md", text + "\n")
    assert said in str(problem(line))


@pytest.mark.parametrize(
    "text",
    [
        "```sh\npip install . && remoe-edge chat   # install, and talk\n```",
        "```sh\nremoe-edge bench again docs/results/bench-*.json --models F --models models\n```",
        "```sh\nremoe-edge tune m.gguf --help\n```",
        "`remoe-edge tune` needs data, as `convert routers --strength 0.67` does.",
        "```sh\nremoe-edge top | head\n```",
    ],
)
def test_what_exists_is_not(text: str) -> None:
    found = list(lines_of("page.md", text + "\n"))
    assert found
    assert [problem(line) for line in found] == [None] * len(found)


def test_the_reference_is_what_the_commands_say() -> None:
    wanted = cli_reference.page()
    held = cli_reference.PAGE.read_text(encoding="utf-8")
    assert held == wanted, "run: python tools/cli_reference.py"


def test_the_reference_has_every_command_and_option() -> None:
    text = cli_reference.page()
    for name in COMMANDS:
        assert re.search(rf"^## {name}\b", text, re.M), name
    for option in ("--max-tokens N", "--io auto", "--direct/--no-direct", "-o`, `--output FILE"):
        assert option in text
    assert max(len(each) for each in text.splitlines() if not each.startswith("|")) <= 120


def test_an_old_reference_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "reference" / "cli.md"
    monkeypatch.setattr(cli_reference, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["cli_reference.py", "--check"])
    with pytest.raises(SystemExit, match="run this without --check"):
        cli_reference.main()
    monkeypatch.setattr(sys, "argv", ["cli_reference.py"])
    cli_reference.main()
    monkeypatch.setattr(sys, "argv", ["cli_reference.py", "--check"])
    cli_reference.main()
    page.write_text(page.read_text().replace("--cache", "--cash"))
    with pytest.raises(SystemExit, match="run this without --check"):
        cli_reference.main()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("remoe-edge ch", "chat"),
        ("remoe-edge chat --pre", "--prefetch"),
        ("remoe-edge chat --io io_", "io_uring"),
        ("remoe-edge bench --tok", ""),
    ],
)
def test_the_shell_can_complete(words: str, offered: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from remoe_edge.cli import cli; cli(prog_name='remoe-edge')"],
        env={
            **os.environ, "_REMOE_EDGE_COMPLETE": "bash_complete", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    found = [each.partition(",")[2] for each in done.stdout.split()]
    assert found == ([offered] if offered else [])


def test_the_readme_has_the_two_commands_that_ci_takes_from_it() -> None:
    # .ci/run looks for them in the same way: a third one would stop it at its first step.
    blocks = re.findall(r"^```sh$(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [line.split("#")[0].strip() for line in lines if re.match(r"pip install .+ && ", line)]
    assert found == ["pip install . && remoe-edge chat", "pip install '.[test]' && pytest"]
