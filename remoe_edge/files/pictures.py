"""Where pictures are drawn: matplotlib without a screen (extra `[plot]`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.files.atomic import replacing

_MISSING = "pictures need matplotlib: pip install 'remoe-edge[plot]'"


def available() -> bool:
    """Tell whether anything can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def check(path: Path) -> None:
    """Refuse, before what takes long, a picture that cannot be drawn. Raises as `pyplot`, and InputError.

    The ending of its name says what kind of picture it is.
    """
    kinds = pyplot().Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise InputError(f"{path}: a picture's name ends in .png, .svg or .pdf")


def pyplot() -> Any:
    """Return matplotlib.pyplot, set to draw into files. Raises UnsupportedError where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(_MISSING) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as drawn

    return drawn


def save(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a picture, whole or not at all; its name's ending says of which kind.

    Raises InputError where it says of none, ReadError where it cannot be written.
    """
    with replacing([path]) as (part,):
        try:
            figure.savefig(part, dpi=dpi, format=path.suffix.lower().removeprefix(".") or None)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error


def drawn_name(name: str) -> str:
    """Give a name of somebody else's as matplotlib has to be told it, to draw it as it is.

    It takes what stands between two `$` for a formula, leaves a curve whose name begins with `_` out of
    the legend, and stops at bytes that are no UTF-8.
    """
    text = name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
