"""--text, a text that a command reads as if it were being decoded."""

from __future__ import annotations

from typing import Any

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import Decorator, option


def text(*names: str, more: str, **settings: Any) -> Decorator:
    """Add --text."""
    return option(
        "--text", *names, type=options.FILE, metavar="FILE",
        help=f"Read this text token by token. {more}", **settings,
    )  # fmt: skip
