"""Write grammars for arguments that are written as they are, between tags, and not as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from remoe_edge.serve.fields import BadField, short
from remoe_edge.serve.schemas import Rules, check, literal
from remoe_edge.serve.tools.argument_writer import types_of
from remoe_edge.serve.tools.format import Tool

_ANY_TEXT = '( [^<] | "<" [^/] )*'  # no closing tag begins in it
_OF_TEXTS = ("pattern", "format", "minLength", "maxLength")


def arguments(tool: Tool) -> list[tuple[str, Any, bool]]:
    """List a tool's arguments as (name, schema, has it to be there?). Raises BadField."""
    schema = tool.parameters or {"type": "object"}
    check(schema, "tools")
    required = set(schema.get("required", []))
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return [
        (name, {**each, **shared}, name in required)
        for name, each in schema.get("properties", {}).items()
    ]


def value(rules: Rules, tool: Tool, name: str, schema: Mapping[str, Any]) -> str:
    """Write what an argument may be. Raises BadField for a text with more of a schema."""
    types = types_of(tool.parameters, name)
    if "string" not in types:
        return rules.add(schema, "tools")
    known = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if known is not None:
        return f"( {' | '.join(literal(_plain(each)) for each in known)} )"
    held = [each for each in _OF_TEXTS if each in schema]
    if held:
        raise BadField(
            "tools",
            f"tools: this model writes '{short(name)}' as it is, which no grammar can hold to its "
            f"{held[0]}; leave {held[0]} out, or tool_choice to auto",
        )
    return _ANY_TEXT


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def one_after_another(parts: Sequence[tuple[str, bool]], between: str = "") -> str:
    """Write parts in order, of which those that need not be there may be left out."""
    needed = [each for each, is_needed in parts if is_needed]
    free = [each for each, is_needed in parts if not is_needed]
    sep = f"{between} " if between else ""
    if needed:
        return " ".join([f" {sep}".join(needed), *(f"( {sep}{each} )?" for each in free)])
    choices = [
        " ".join([each, *(f"( {sep}{later} )?" for later in free[i + 1 :])])
        for i, each in enumerate(free)
    ]
    return f"( {' | '.join(choices)} )?" if choices else '""'
