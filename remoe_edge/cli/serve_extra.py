"""Say in a line that something needs the extra [serve], where its packages are not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from remoe_edge.errors import UnsupportedError


@contextlib.contextmanager
def needing_serve(what: str) -> Iterator[None]:
    """Import in the block what the extra brings.

    what: the option or command that needs it. Raises UnsupportedError, which names the package.
    """
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(
            f"{what} needs {error.name}: pip install 'remoe-edge[serve]'"
        ) from error
