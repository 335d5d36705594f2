"""Includes of csrc/ against the table of layers, and against what CMake links."""

from __future__ import annotations

import re
from pathlib import Path

from rules import layers

_INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.M)
_LAYER = re.compile(r"^remoe_layer\((\w+)([^)]*)\)", re.M)
_LINKS = re.compile(r"^\s*target_link_libraries\((remoe_device|_core)\s([^)]*)\)", re.M)


def reach(layer: str) -> frozenset[str]:
    """Name the layers that one may include: itself, and all it stands on."""
    below = [reach(each) for each in layers.CPP_LAYERS[layer]]
    return frozenset({layer}).union(*below)


def violations(root: Path) -> list[str]:
    """Report includes that point upwards, between siblings, around the roots, or to others' headers.

    Tests may include `testing/` besides.
    """
    said = []
    for path in sorted((root / "csrc").rglob("*.[hc]*")):
        if path.suffix not in {".h", ".cc"}:
            continue
        layer = path.relative_to(root / "csrc").parts[0]
        where = path.relative_to(root)
        if layer not in layers.CPP_LAYERS:
            said.append(f"{where}: no layer is called {layer}; add it to rules/layers.py")
            continue
        allowed = reach(layer) | ({"testing"} if _is_test(path) else set())
        text = path.read_text(encoding="utf-8")
        for match in _INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            wrong = _wrong(match[1] or match[2], layer, allowed, quoted=match[1] is not None)
            if wrong:
                said.append(f"{where}:{line}: {wrong}")
    return said


def _is_test(path: Path) -> bool:
    """Tell tests, and what a layer keeps for its tests in a folder `testing`."""
    return path.name.endswith("_test.cc") or path.parent.name == "testing"


def linked(root: Path) -> dict[str, frozenset[str]]:
    """Read from the CMake files which layers each layer links."""
    found: dict[str, frozenset[str]] = {}
    text = (root / "csrc/CMakeLists.txt").read_text(encoding="utf-8")
    for name, links in _LAYER.findall(text):
        found[name] = frozenset(re.findall(r"\bremoe_(\w+)", links))
    for folder in ("device", "bindings"):
        text = (root / "csrc" / folder / "CMakeLists.txt").read_text(encoding="utf-8")
        for target, links in _LINKS.findall(text):
            layer = {"_core": "bindings"}.get(target, "device")
            links = links.replace("remoe_loader", "remoe_device")
            found[layer] = found.get(layer, frozenset()) | set(re.findall(r"\bremoe_(\w+)", links))
    return found


def _wrong(included: str, layer: str, allowed: frozenset[str] | set[str], quoted: bool) -> str:
    if ".." in included.split("/"):
        return f"{included} goes around the include roots"
    first = included.split("/")[0]
    if first in layers.CPP_LAYERS and "/" in included:
        if first not in allowed:
            return f"{layer} may not include {included}"
        return ""
    for prefix, may in layers.CPP_OUTSIDE.items():
        if re.match(rf"{prefix}\b|{prefix}[-_.]", first):
            return "" if layer in may else f"only {', '.join(sorted(may))} may see {included}"
    return f"{included} names no layer: write layer/file.h" if quoted else ""
