"""From a record back to the command line that made it."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from remoe_edge.bench.arms import FILE_SETTINGS
from remoe_edge.errors import InputError
from remoe_edge.placement import price

# Results of another run are not overwritten by this one. Records of version 0.1 have `--json FILE`,
# where `--json` is a flag now.
_OUTPUTS = ("-o", "--output", "--csv", "--html")
_JSON = "--json"
# Options that name files, and where in their values.
_NAMED = {
    **dict.fromkeys(("--text", "--prompts", "--keys", "-m", "--model"), re.compile("(?P<file>.+)")),
    "--price": re.compile(rf"^(?!(?:{'|'.join(price.shipped())})$)(?P<file>.+)"),
    "--routers": re.compile(r"(?<![^,])(?!(?:on|off|default)(?:,|$))(?P<file>[^,]+)"),
    "--arms": re.compile(rf"(?<=\+)(?:{'|'.join(sorted(FILE_SETTINGS))})=(?P<file>[^,+]+)"),
}


def arguments(record: dict[str, Any], path: Path, folders: Sequence[Path]) -> list[str]:
    """Give the arguments after `remoe-edge bench`, with files looked for in `folders`
    and the folders in them.

    Raises InputError, naming the record at `path`, when one is not there.
    """
    try:
        words = shlex.split(record["command"])[2:]
        return _found(words[1:] if words[:1] == ["run"] else words, record, path, folders)
    except (ValueError, IndexError) as error:
        # A quote that is not closed, an option without its value.
        raise InputError(f"{path} is a damaged record: its command cannot be read") from error


def _found(
    words: list[str], record: dict[str, Any], path: Path, folders: Sequence[Path]
) -> list[str]:
    made: list[str] = []
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if option in _OUTPUTS:
            if not equals:
                words.pop(0)
        elif option == _JSON:
            if not equals and words and words[0].endswith(".json"):
                words.pop(0)
        elif option in _NAMED:
            value = value if equals else words.pop(0)
            made += [option, _NAMED[option].sub(_finder(path, folders), value)]
        elif word == record["model"]["file"]:
            made.append(str(_find(word, path, folders)))
        else:
            made.append(word)
    return made


def _finder(path: Path, folders: Sequence[Path]) -> Callable[[re.Match[str]], str]:
    def found(match: re.Match[str]) -> str:
        setting = match[0].removesuffix(match["file"])
        return f"{setting}{_find(match['file'], path, folders)}"

    return found


def _find(name: str, path: Path, folders: Sequence[Path]) -> Path:
    for folder in folders:
        for found in (folder / name, *sorted(folder.glob(f"*/{glob.escape(name)}"))):
            if found.is_file():
                return found
    raise InputError(f"{path} needs {name}, which is not in {' or '.join(map(str, folders))}")
