"""Where this user's deployments are written down."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Return the folder of records, beside that of running engines."""
    from remoe_edge.telemetry.status import default_folder

    return default_folder(os.environ.get("XDG_RUNTIME_DIR")) / "deployments"
