"""Make llama.cpp's grammars from JSON schemas, and refuse what they cannot hold an answer to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from remoe_edge.native import llama_cpp
from remoe_edge.serve.fields import BadField, kind, short

# What the converter of llama-cpp-python turns into rules.
_KEYWORDS = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "items", "prefixItems", "enum",
        "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "minItems", "maxItems",
        "minLength", "maxLength", "pattern", "format",
    }
)  # fmt: skip
_SAYS_NOTHING = frozenset(
    {
        "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated",
        "readOnly", "writeOnly", "nullable",
    }
)  # fmt: skip
_FORMATS = frozenset(
    {"date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"}
)
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_OF_SCHEMAS = ("properties", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_REF = re.compile(r"#/(\$defs|definitions)/([^/]+)")
# A pattern's braces, and what they may stand in without a meaning.
_BRACES = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|\{([^}]*)\}", re.DOTALL)
_LONGEST_PATTERN = 4096  # characters, each of which may be repeated
_MOST_REPETITIONS = 1000
_MOST_SCHEMAS = 400
_MOST_RULES = 1 << 18  # characters


class _Converter(llama_cpp.llama_grammar.SchemaConverter):  # type: ignore[misc]
    """Write texts so that the grammar reads them: a quote in a name would end its rule too early.

    llama.cpp prints a grammar that it cannot read, and with it what was asked.
    """

    def _format_literal(self, literal: str) -> str:
        return _written(literal)


class Rules:
    """Collect a grammar's rules. `add` takes a schema and returns the name of the rule for it."""

    def __init__(self) -> None:
        self._converter = _Converter(
            prop_order={"name": 0, "arguments": 1, "parameters": 2},
            allow_fetch=False, dotall=False, raw_pattern=False,
        )  # fmt: skip
        self._n = 0

    def add(self, schema: Mapping[str, Any], param: str) -> str:
        """Take in a schema. Raises BadField, for `param`, where it asks for what no rule can say."""
        check(schema, param)
        self._n += 1
        name = f"schema{self._n}"
        made = _with_own_names(dict(schema), name)
        if "$ref" in made:  # the converter looks no further than a reference
            made["anyOf"] = [{"$ref": made.pop("$ref")}]
        try:
            made = self._converter.resolve_refs(made, name)
            return str(self._converter.visit(made, name))
        except (RecursionError, Exception) as error:
            raise BadField(
                param, f"{param}: no grammar can be made of it: {short(error)}"
            ) from None

    def anything(self) -> str:
        """Give the rule of any JSON object."""
        return self.add({"type": "object"}, "schema")

    def text(self, root: str) -> str:
        """Write the grammar with `root` as its beginning. Raises BadField for one far too large."""
        rules = f"root ::= {root}\n{self._converter.format_grammar()}\n"
        if len(rules) > _MOST_RULES:
            raise BadField("schema", "the schema makes too large a grammar")
        return rules


def _with_own_names(schema: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Copy a schema; rules go by the names of definitions, which two schemas may both have."""
    names = {
        (where, key): f"{prefix}-{where.lstrip('$')}-{i}"
        for where in ("$defs", "definitions")
        for i, key in enumerate(schema.get(where, {}))
    }

    def renamed(value: Any, *, at_top: bool = False) -> Any:
        if isinstance(value, list):
            return [renamed(each) for each in value]
        if not isinstance(value, dict):
            return value
        made = {key: renamed(each) for key, each in value.items()}
        for where in ("$defs", "definitions") if at_top else ():
            if where in made:
                made[where] = {names[where, key]: each for key, each in made[where].items()}
        if isinstance(value.get("$ref"), str) and (found := _REF.fullmatch(value["$ref"])):
            name = names.get((found[1], found[2]), found[2])
            made["$ref"] = f"#/{found[1]}/{name}"
        return made

    made: dict[str, Any] = renamed(schema, at_top=True)
    return made


def literal(text: str) -> str:
    """Write a text as a grammar does."""
    return _written(text)


def _written(text: str) -> str:
    named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    written = "".join(
        named.get(each) or (each if each.isprintable() else f"\\U{ord(each):08x}") for each in text
    )
    return f'"{written}"'


def check(schema: Any, param: str) -> None:
    """Raise BadField, which names the keyword, for a schema that would be followed in part only."""
    todo = [(schema, param)]
    for n_seen in range(_MOST_SCHEMAS + 1):
        if not todo:
            return
        if n_seen == _MOST_SCHEMAS:
            break
        found, where = todo.pop()
        if not isinstance(found, Mapping):
            raise BadField(param, f"{where} is a schema, an object, not {kind(found)}")
        _check_keywords(found, where, param)
        if where == param:
            _check_circles(found, param)
        for name in _OF_SCHEMAS:
            todo += [
                (each, f"{where}.{name}.{short(key)}") for key, each in found.get(name, {}).items()
            ]
        for name in _LISTS_OF_SCHEMAS:
            todo += [(each, f"{where}.{name}[{i}]") for i, each in enumerate(found.get(name, []))]
        items = found.get("items")
        todo += [(items, f"{where}.items")] if isinstance(items, Mapping) else []
        if isinstance(items, list):
            todo += [(each, f"{where}.items[{i}]") for i, each in enumerate(items)]
        if isinstance(found.get("additionalProperties"), Mapping):
            todo.append((found["additionalProperties"], f"{where}.additionalProperties"))
    raise BadField(param, f"{param} has more than {_MOST_SCHEMAS} schemas in it")


def _check_circles(schema: Mapping[str, Any], param: str) -> None:
    """Refuse definitions that lead back to themselves with nothing written between."""

    def leads(found: Any) -> set[str]:
        if not isinstance(found, Mapping):
            return set()
        lists = [found.get(name) for name in ("anyOf", "oneOf", "allOf")]
        inner = [each for some in lists if isinstance(some, list) for each in some]
        own = {found["$ref"]} if isinstance(found.get("$ref"), str) else set()
        return own.union(*map(leads, inner))

    definitions = {
        f"#/{where}/{key}": leads(each)
        for where in ("$defs", "definitions")
        if isinstance(schema.get(where), Mapping)
        for key, each in schema[where].items()
    }
    for name in definitions:
        seen: set[str] = set()
        todo = [name]
        while todo:
            for each in definitions.get(todo.pop(), ()):
                if each == name:
                    raise BadField(param, f"{param}: {short(name)} is defined by itself alone")
                if each not in seen:
                    seen.add(each)
                    todo.append(each)


def _check_keywords(schema: Mapping[str, Any], where: str, param: str) -> None:
    def refuse(why: str) -> None:
        raise BadField(param, f"{where}: {why}")

    unknown = sorted(schema.keys() - _KEYWORDS - _SAYS_NOTHING)
    if unknown:
        refuse(f"an answer cannot be held to '{short(unknown[0])}'")
    for name in _OF_SCHEMAS:
        if not isinstance(schema.get(name, {}), Mapping):
            refuse(f"{name} is an object of schemas")
    for name in _LISTS_OF_SCHEMAS:
        if name in schema and not (isinstance(schema[name], list) and schema[name]):
            refuse(f"{name} is a list of schemas")
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        refuse("enum is a list of values")
    required = schema.get("required", [])
    if not (isinstance(required, list) and all(isinstance(each, str) for each in required)):
        refuse("required is a list of names")
    missing = set(required) - set(schema.get("properties", {}))
    if missing:
        refuse(f"'{short(min(missing))}' is required and no property")
    types = schema.get("type", "object")
    if types == []:
        refuse("type is empty")
    for each in types if isinstance(types, list) else [types]:
        if not (isinstance(each, str) and each in _TYPES):
            refuse(f"there is no type '{short(each)}'")
    if "format" in schema and schema["format"] not in _FORMATS:
        refuse(f"an answer cannot be held to the format '{short(schema['format'])}'")
    if "$ref" in schema and not (
        isinstance(schema["$ref"], str) and _REF.fullmatch(schema["$ref"])
    ):
        refuse("$ref is #/$defs/NAME or #/definitions/NAME")
    for name in ("minItems", "maxItems", "minLength", "maxLength"):
        n = schema.get(name, 0)
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= _MOST_REPETITIONS:
            refuse(f"{name} is 0 to {_MOST_REPETITIONS}")
    for least, most in (("minItems", "maxItems"), ("minLength", "maxLength")):
        if schema.get(least, 0) > schema.get(most, math.inf):
            refuse(f"{least} is above {most}")
    pattern = schema.get("pattern", "")
    if not isinstance(pattern, str):
        refuse("pattern is a regular expression")
    if len(pattern) > _LONGEST_PATTERN:
        refuse(f"pattern has up to {_LONGEST_PATTERN} characters")
    for found in _BRACES.finditer(pattern):
        if found[1] is not None and not _repeats(found[1]):
            refuse(f"pattern repeats 0 to {_MOST_REPETITIONS} times, not {short(found[0])}")


def _repeats(inside: str) -> bool:
    """Say whether what stands in a pattern's braces is a number, or a range of them, within bounds."""
    ends = [each.strip() for each in inside.split(",")]
    if len(ends) > 2 or not any(ends):
        return False
    if not all(
        not each or (each.isascii() and each.isdecimal() and len(each) < 9) for each in ends
    ):
        return False
    least, most = int(ends[0] or 0), int(ends[-1] or _MOST_REPETITIONS)
    return least <= most <= _MOST_REPETITIONS
