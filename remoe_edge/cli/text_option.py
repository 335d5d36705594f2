"""--text, texts that a command reads as if they were being decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import Decorator, option
from remoe_edge.names import named_twice


def text(*, more: str, **settings: Any) -> Decorator:
    """Add --text; a command gets `texts`, whose names differ."""
    return option(
        "--text", "texts", type=options.FILE, metavar="FILE", multiple=True, callback=_named,
        help=f"Read this text token by token. May be repeated. {more}", **settings,
    )  # fmt: skip


def _named(ctx: click.Context, param: click.Parameter, texts: tuple[Path, ...]) -> tuple[Path, ...]:
    """Refuse texts that no result could tell apart."""
    if (name := named_twice(path.stem for path in texts)) is not None:
        raise click.UsageError(f"two texts are named {name}: name one otherwise")
    return texts
