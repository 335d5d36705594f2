"""Find the model that comes with the package, and the files that lie beside a model."""

from __future__ import annotations

import os
from pathlib import Path

from remoe_edge.errors import InputError

ROUTERS_SUFFIX = ".routers.gguf"
COARSE_SUFFIX = ".coarse.gguf"


def folders() -> list[Path]:
    """List where the shipped model may be: inside an installed package, or beside a checkout's."""
    package = Path(__file__).resolve().parent.parent
    return [package / "models", package.parent / "models"]


def shipped_model() -> Path:
    """Return the model that comes with the package. Raises InputError naming where it looked."""
    for folder in folders():
        found = [
            path
            for path in _ggufs(folder)
            if not path.name.endswith((ROUTERS_SUFFIX, COARSE_SUFFIX))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise InputError(f"{folder} holds several models ({names}): choose one with -m")
    places = " or ".join(str(folder) for folder in folders())
    raise InputError(f"no model was installed in {places}: name a GGUF with -m")


def shipped_routers(model: Path) -> Path:
    """Return the tuned-router overlay that lies beside a model. Raises InputError without one."""
    own = model.with_name(model.name.removesuffix(".gguf") + ROUTERS_SUFFIX)
    if own.is_file():
        return own
    found = [path for path in _ggufs(model.parent) if path.name.endswith(ROUTERS_SUFFIX)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise InputError(f"several router overlays lie beside {model} ({names}): name one")
    raise InputError(f"no router overlay (*{ROUTERS_SUFFIX}) lies beside {model}")


def _ggufs(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.endswith(".gguf")]
