"""Where pictures are drawn: matplotlib without a screen (extra `[plot]`)."""

from __future__ import annotations

from typing import Any

from remoe_edge.errors import UnsupportedError


def pyplot() -> Any:
    """Return matplotlib.pyplot, set to draw into files. Raises UnsupportedError where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            "pictures need matplotlib: pip install 'remoe-edge[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as drawn

    return drawn
