"""Names by which things are told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def named_twice(names: Iterable[str]) -> str | None:
    """Give the first name that stands more than once, None where all differ."""
    return next((name for name, n in Counter(names).items() if n > 1), None)
