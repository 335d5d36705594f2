"""Includes of csrc/ against the table of layers, and against what CMake links."""

from __future__ import annotations

import re
from pathlib import Path

from rules import layers

_INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.M)
_LAYER = re.compile(r"^remoe_layer\((\w+)([^)]*)\)", re.M)
_LINKS = re.compile(
    r"^\s*target_link_libraries\((remoe_device|_core|remoe_plugin)\s([^)]*)\)", re.M
)


def reach(layer: str) -> frozenset[str]:
    """Name the layers that one may include: itself, and all it stands on."""
    below = [reach(each) for each in layers.CPP_LAYERS[layer]]
    return frozenset({layer}).union(*below)


def violations(root: Path) -> list[str]:
    """Report includes that point upwards, between siblings, around the roots, or to others' headers.

    Tests, and headers that only tests include, may include `testing/` besides.
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
        allowed = reach(layer) | ({"testing"} if _is_test(where) else set())
        text = path.read_text(encoding="utf-8")
        for match in _INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            wrong = _wrong(match[1] or match[2], layer, allowed, quoted=match[1] is not None)
            if wrong:
                said.append(f"{where}:{line}: {wrong}")
    return said


def linked(root: Path) -> dict[str, frozenset[str]]:
    """Read from the CMake files which layers each layer links."""
    found: dict[str, frozenset[str]] = {}
    text = (root / "csrc/CMakeLists.txt").read_text(encoding="utf-8")
    for name, links in _LAYER.findall(text):
        found[name] = frozenset(re.findall(r"\bremoe_(\w+)", links))
    for folder in ("device", "bindings", "plugin"):
        text = (root / "csrc" / folder / "CMakeLists.txt").read_text(encoding="utf-8")
        for target, links in _LINKS.findall(text):
            layer = {"_core": "bindings", "remoe_plugin": "plugin"}.get(target, "device")
            names = re.findall(r"\bremoe_(\w+)", links)
            # The loader is the part of device/ that links libllama.
            names = [{"loader": "device"}.get(name, name) for name in names]
            found[layer] = found.get(layer, frozenset()) | set(names)
    return {name: below - {name} for name, below in found.items()}


def _is_test(place: Path) -> bool:
    return (
        place.name.endswith("_test.cc")
        or place.name.startswith("test_")
        or "testing" in place.parts[2:-1]
    )


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
