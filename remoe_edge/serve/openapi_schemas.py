"""Short ways to write the schemas of requests, where null counts as not given."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

ANY: Schema = {}
FLAG: Schema = {"type": "boolean"}
ROLES_OF_TEXT = ("system", "developer", "user")


def text(least: int | None = None, most: int | None = None) -> Schema:
    """Describe a text of so many characters."""
    bounds = {"minLength": least, "maxLength": most}
    return {"type": "string", **{key: each for key, each in bounds.items() if each is not None}}


def number(least: float, most: float) -> Schema:
    """Describe a number within a range."""
    return {"type": "number", "minimum": least, "maximum": most}


def whole(least: int, most: int) -> Schema:
    """Describe a whole number within a range."""
    return {"type": "integer", "minimum": least, "maximum": most}


def choice(*known: str) -> Schema:
    """Describe one of several words."""
    return {"enum": list(known)}


def only(value: Any) -> Schema:
    """Describe a field that has one value that asks for nothing."""
    return {"const": value}


def array(items: Schema, *, least: int | None = None, most: int | None = None) -> Schema:
    """Describe a list."""
    bounds = {"minItems": least, "maxItems": most}
    return {
        "type": "array", "items": items,
        **{key: each for key, each in bounds.items() if each is not None},
    }  # fmt: skip


def obj(properties: dict[str, Schema], *required: str) -> Schema:
    """Describe an object with these fields and no others; what is not required may be null."""
    return {
        "type": "object",
        "properties": {
            name: each if name in required or each == ANY else _or_null(each)
            for name, each in properties.items()
        },
        "required": list(required),
        "additionalProperties": False,
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
