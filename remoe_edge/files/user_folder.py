"""The user's home folder, for a process whose user may have none.

In containers a process may run under an id that no password file knows, with HOME unset or naming a
folder that is not there. What would be kept at home is then not kept, which its owner says in a note.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path | None:
    """Return the home folder; None where the user has none, or one that stands for none.

    It may have to be made still. `/` and /nonexistent are what systems write for no home, and so does a
    container for an id that it does not know.
    """
    try:
        folder = Path.home()
    except (RuntimeError, KeyError):  # neither HOME nor an entry in the password file
        return None
    if not folder.is_absolute() or folder == Path("/"):
        return None
    to_be_made = folder.parent != Path("/") and os.path.isdir(folder.parent)
    return folder if os.path.isdir(folder) or to_be_made else None
