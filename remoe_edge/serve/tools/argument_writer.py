"""Write a call's arguments as JSON while they come as texts, one argument after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_NAMES = {"True": "true", "False": "false", "None": "null"}  # as models for Python know them


class ArgumentWriter:
    """Give out JSON for the arguments that a schema tells of.

    An argument that is a text is given out as it comes. Others are held until they are complete: JSON is
    left as it is, and what is none becomes a text. trims: a line break before and one behind a value are
    none of it.
    """

    def __init__(self, parameters: Mapping[str, Any], *, trims: bool) -> None:
        self._parameters, self._trims = parameters, trims
        self._n = 0
        self._types: frozenset[str] = frozenset()
        self._held = ""
        self._is_first = True

    def begin(self, name: str) -> str:
        """Begin an argument."""
        self._types = types_of(self._parameters, name)
        self._held, self._is_first = "", True
        before = ", " if self._n else "{"
        self._n += 1
        quote = '"' if self._is_text else ""
        return f"{before}{json.dumps(name, ensure_ascii=False)}: {quote}"

    def take(self, text: str) -> str:
        """Take in a piece of its value."""
        if not self._is_text:
            self._held += text
            return ""
        if self._trims and self._is_first and text:
            text = text.removeprefix("\n")
            self._is_first = False
        text = self._held + text
        ready = text[:-1] if self._trims and text.endswith("\n") else text
        self._held = text[len(ready) :]
        return _inner(ready)

    def finish(self) -> str:
        """End an argument."""
        if self._is_text:
            return '"'
        held = self._held
        if self._trims:
            held = held.removeprefix("\n").removesuffix("\n")
        return self._value(held)

    def close(self) -> str:
        """End the arguments."""
        return "}" if self._n else "{}"

    @property
    def _is_text(self) -> bool:
        return self._types == {"string"}

    def _value(self, text: str) -> str:
        value = text.strip()
        if "string" in self._types and not (value == "null" and "null" in self._types):
            return json.dumps(text, ensure_ascii=False)
        value = _NAMES.get(value, value)
        try:
            json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return json.dumps(text, ensure_ascii=False)
        return value


def types_of(parameters: Mapping[str, Any], name: str) -> frozenset[str]:
    """Tell of what types an argument may be; empty where nothing says so."""
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(schema, parameters, 0)


def _types(schema: Any, top: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    ref = schema.get("$ref")
    if isinstance(ref, str):
        where, _, name = ref.removeprefix("#/").partition("/")
        definitions = top.get(where)
        found = definitions.get(name) if isinstance(definitions, Mapping) else None
        return _types(found, top, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return frozenset().union(*(_types(each, top, depth + 1) for each in schema[key]))
    found = schema.get("type")
    if isinstance(found, str):
        return frozenset({found})
    if isinstance(found, list):
        return frozenset(map(str, found))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else []
    values = [*values, *([schema["const"]] if "const" in schema else [])]
    if values and all(isinstance(each, str) for each in values):
        return frozenset({"string"})
    return frozenset()


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
