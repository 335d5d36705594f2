"""Where the plug-in is: the library that programs open, and its core for each build of ggml."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.errors import UnsupportedError
from remoe_edge.plugin.libraries import Ggml

ENTRY = "libremoe.so"
CORE = "libremoe-core.so"


def folders(kept: Path | None) -> list[Path]:
    """List where plug-ins may be: the user's own folder, the package, a checkout's build."""
    package = Path(__file__).resolve().parent
    checkout = sorted(package.parent.parent.glob("build/[!n]*/csrc/plugin"))  # no native-address
    return [folder for folder in [kept, package, *checkout] if folder is not None]


def entry(kept: Path | None) -> Path:
    """Find the library that programs open. Raises UnsupportedError where none was built."""
    for folder in folders(kept):
        if (folder / ENTRY).is_file():
            return folder / ENTRY
    raise UnsupportedError("no plug-in was built yet: remoe-edge plugin build")


def core(ggml: Ggml, kept: Path | None) -> Path | None:
    """Find the core for that build of ggml."""
    for folder in folders(kept):
        packaged = [ggml.packaged_build] if ggml.is_packaged and folder != kept else []
        for name in [ggml.build, *packaged]:
            found = folder / "builds" / name / CORE
            if found.is_file():
                return found
    return None


def require_core(ggml: Ggml, kept: Path | None, program: str) -> Path:
    """Find it. Raises UnsupportedError that names what was found, what is there, and the command."""
    found = core(ggml, kept)
    if found is not None:
        return found
    raise UnsupportedError(
        f"{program} has {ggml}, and the plug-in was built for {', '.join(built(kept)) or 'none'}: "
        "remoe-edge plugin build --llama-cpp DIR, where DIR is the source tree of that llama.cpp"
    )


def built(kept: Path | None) -> list[str]:
    """List the builds of ggml that there is a core for, as `version-commit-id`."""
    found = {
        path.parent.name for folder in folders(kept) for path in folder.glob(f"builds/*/{CORE}")
    }
    return sorted(found)
