"""The environment that a program needs to load the plug-in, and the settings that it then reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# OpenMP's waiting threads must not spin beside the threads that read (see native.py).
_WAIT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


def environment(
    entry: Path, builds: Path | None, settings: Mapping[str, str], present: Mapping[str, str]
) -> dict[str, str]:
    """Make what is added to `present`, the environment as it is.

    `settings`: what the user chose, by name without REMOE_; empty values are left out.
    """
    added = {"GGML_BACKEND_PATH": str(entry)}
    # Programs that load backends only on demand look at GGML_BACKEND_PATH all the same.
    preloaded = present.get("LD_PRELOAD", "").split(":")
    if str(entry) not in preloaded:
        added["LD_PRELOAD"] = ":".join([str(entry), *filter(None, preloaded)])
    if builds is not None:
        added["REMOE_PLUGIN_BUILDS"] = str(builds)
    added |= {f"REMOE_{name.upper()}": value for name, value in settings.items() if value}
    return added | {name: value for name, value in _WAIT.items() if name not in present}
