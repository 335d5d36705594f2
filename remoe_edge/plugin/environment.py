"""The environment that a program needs to load the plug-in, and the settings that it then reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from remoe_edge.errors import InputError, UnsupportedError

# OpenMP's waiting threads must not spin beside the threads that read (see native.py).
_WAIT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


def environment(
    entry: Path, builds: Path | None, settings: Mapping[str, str], present: Mapping[str, str]
) -> dict[str, str]:
    """Make what is added to `present`, the environment as it is.

    `settings`: what the user chose, by name without REMOE_; empty values are left out.
    Raises InputError where `present` names another backend, UnsupportedError where `entry` lies badly.
    """
    other = present.get("GGML_BACKEND_PATH", "")
    if other and Path(other).name != entry.name:
        raise InputError(
            f"GGML_BACKEND_PATH is {other}, and llama.cpp loads one backend by that name: unset it"
        )
    if re.search(r"[\s:]", str(entry)):  # LD_PRELOAD has no way to write these
        raise UnsupportedError(
            f"{entry} cannot be preloaded, for a space or a colon in its path: put it elsewhere "
            "(XDG_DATA_HOME=FOLDER remoe-edge plugin build)"
        )
    added = {"GGML_BACKEND_PATH": str(entry)}
    # Programs that load backends only on demand look at GGML_BACKEND_PATH all the same.
    preloaded = present.get("LD_PRELOAD", "").split(":")
    if str(entry) not in preloaded:
        added["LD_PRELOAD"] = ":".join([str(entry), *filter(None, preloaded)])
    if builds is not None:
        added["REMOE_PLUGIN_BUILDS"] = str(builds)
    added |= {f"REMOE_{name.upper()}": value for name, value in settings.items() if value}
    return added | {name: value for name, value in _WAIT.items() if name not in present}
