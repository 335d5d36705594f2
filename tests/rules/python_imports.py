"""Imports of a Python package against the table of layers, read from its syntax trees.

Imports inside functions count like others. Those under `TYPE_CHECKING` may not point upwards
either, since a room that names a type knows the room it comes from; they close no circle, because
they never run. No dependency: import-linter would have to be told the same table in its own
words, and knows nothing of environment variables.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rules import layers

PACKAGE = "remoe_edge"
# What is at the top of the package for its users; inside it only the version is taken from there.
_FACADE_NAMES = frozenset({"__version__"})


@dataclass(frozen=True)
class Import:
    """One imported module, as far as a file with that name exists, and where it is imported."""

    importer: str
    imported: str
    line: int
    typing_only: bool


@functools.cache
def modules(root: Path) -> dict[str, Path]:
    """Find every module of the package below root: its full name, and its file. Read once."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(root: Path) -> list[Import]:
    """List the imports of all modules, wherever in a file they stand."""
    known = modules(root)
    found = []
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        version_only = _taken_from_facade(tree) <= _FACADE_NAMES
        for node, typing_only in _walk(tree, False):
            for imported in _names(node, package, known):
                if imported == PACKAGE and isinstance(node, ast.Import) and version_only:
                    continue
                found.append(Import(name, imported, node.lineno, typing_only))
    return found


def upward(root: Path) -> list[str]:
    """Report imports of a higher layer, rooms that no layer holds, and names of the facade."""
    heights = {room: i for i, rooms in enumerate(layers.PYTHON_LAYERS) for room in rooms}
    said = []
    for each in imports(root):
        if not each.imported.startswith(PACKAGE):
            continue
        lower, upper = _room(each.importer), _room(each.imported)
        where = f"{_place(each.importer, root)}:{each.line}"
        if lower == PACKAGE:
            continue
        if each.imported == PACKAGE or upper == "__init__":
            said.append(f"{where}: imports from the facade {PACKAGE} more than its version")
            continue
        missing = [room for room in (lower, upper) if room not in heights]
        if missing:
            said.append(f"{where}: no layer holds {missing[0]}; add it to rules/layers.py")
        elif heights[upper] > heights[lower]:
            said.append(f"{where}: {each.imported} is above {lower}")
    return said


def outside(root: Path) -> list[str]:
    """Report packages of others outside the rooms that they belong to."""
    said = []
    for each in imports(root):
        for package, rooms in layers.PYTHON_OUTSIDE.items():
            within = each.imported == package or each.imported.startswith(package + ".")
            if within and _room(each.importer) not in rooms:
                where = f"{_place(each.importer, root)}:{each.line}"
                said.append(f"{where}: {package} belongs to {', '.join(sorted(rooms))}")
    return said


def circles(root: Path) -> list[tuple[str, ...]]:
    """Find the circles: sets of modules each of which reaches all others by imports that run."""
    graph: dict[str, set[str]] = {name: set() for name in modules(root) if name != PACKAGE}
    for each in imports(root):
        if not each.typing_only and each.importer in graph and each.imported in graph:
            graph[each.importer].add(each.imported)
    return [part for part in _components(graph) if len(part) > 1 or part[0] in graph[part[0]]]


def room_circles(root: Path) -> list[tuple[str, ...]]:
    """Find the rooms that import each other, directly or through third ones."""
    graph: dict[str, set[str]] = {_room(name): set() for name in modules(root)}
    graph.pop(PACKAGE, None)
    for each in imports(root):
        rooms = _room(each.importer), _room(each.imported)
        ours = each.imported.startswith(PACKAGE + ".") and graph.keys() >= set(rooms)
        if ours and not each.typing_only and rooms[0] != rooms[1]:
            graph[rooms[0]].add(rooms[1])
    return [part for part in _components(graph) if len(part) > 1]


def environment(root: Path) -> list[str]:
    """Report reads and writes of environment variables outside the rooms that may."""
    said = []
    for name, path in modules(root).items():
        if _room(name) in layers.READS_ENVIRONMENT:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [each.name for each in node.names]
            if {"environ", "environb", "getenv", "getenvb", "putenv"} & set(names):
                said.append(f"{path.relative_to(root)}:{node.lineno}: reads the environment")
    return said


def third_parties(root: Path) -> dict[str, str]:
    """Name every package of others that a run may import, with the first place that does."""
    found: dict[str, str] = {}
    for each in imports(root):
        top = each.imported.partition(".")[0]
        if top != PACKAGE and not each.typing_only:
            found.setdefault(top, f"{_place(each.importer, root)}:{each.line}")
    return found


def _walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, typing_only
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for inner in child.body:
                yield from _walk(ast.Module([inner], []), True)
            for inner in child.orelse:
                yield from _walk(ast.Module([inner], []), typing_only)
        else:
            yield from _walk(child, typing_only)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def _names(node: ast.stmt, package: str, known: dict[str, Path]) -> list[str]:
    """Resolve a statement to modules: `from a import b` is `a.b` where that is a module."""
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base] if base else parents)
    found = []
    for each in node.names:
        inner = f"{base}.{each.name}"
        if inner in known or inner == f"{PACKAGE}._core":
            found.append(inner)
        elif base != PACKAGE or each.name not in _FACADE_NAMES:
            found.append(base)
    return sorted(set(found))


def _taken_from_facade(tree: ast.Module) -> set[str]:
    """Collect `x` of every `remoe_edge.x` that a file says."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == PACKAGE
    }


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == PACKAGE else parts[0]


def _place(module: str, root: Path) -> str:
    return str(modules(root)[module].relative_to(root))


def _components(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Split a graph into its strongly connected components (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(tuple(sorted(stack[at:])))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found
