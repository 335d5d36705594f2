"""The command that made a record, as the record tells it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# The folders of a path that leads out of the working folder: /a/b/ of /a/b/c, also behind = or a comma.
_ELSEWHERE = re.compile(r"(?<![^=,])(?:\.\.)?/(?:[^=,]*/)?")


def typed_command() -> str:
    """Give this process's command; files that lie outside the working folder are named, not located."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(_ROOT):
        script = script.relative_to(_ROOT)
    return shlex.join(
        ["python", *(_ELSEWHERE.sub("", word) for word in [str(script), *sys.argv[1:]])]
    )
