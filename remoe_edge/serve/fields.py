"""Read a request's JSON field by field: a wrong type, a value out of range and a field that nobody has
read are errors that name the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from remoe_edge.errors import InputError

_DEEPEST = 100  # objects and lists inside each other
_INT64 = 2**63


class BadField(InputError):
    """A field makes no sense, or what it asks for cannot be done. param: which one; code: the reason."""

    def __init__(self, param: str | None, why: str, code: str | None = None) -> None:
        super().__init__(why)
        self.param, self.code = param, code


class Fields:
    """Hold a JSON object; what is null counts as not given. `where` is its own name in errors."""

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, Mapping):
            raise BadField(where or None, f"{where or 'the body'} is an object, not {kind(values)}")
        self._values = {str(name): each for name, each in values.items() if each is not None}
        self._where = where
        self._unread = set(self._values)

    def name(self, field: str) -> str:
        """Give a field's name as the client sees it."""
        return f"{self._where}.{field}" if self._where else field

    def has(self, field: str) -> bool:
        """Say whether it was given."""
        return field in self._values

    def any(self, field: str, default: Any = None) -> Any:
        """Give a field of whatever type."""
        self._unread.discard(field)
        return self._values.get(field, default)

    def required(self, field: str) -> Any:
        """Give a field of whatever type that has to be there."""
        if field not in self._values:
            raise BadField(self.name(field), f"{self.name(field)} is missing")
        return self.any(field)

    def text(self, field: str, default: str | None = None) -> str | None:
        """Give a text."""
        found = self.any(field, default)
        return None if found is None else str(self._of(field, found, str, "a text"))

    def needed_text(self, field: str) -> str:
        """Give a text that has to be there."""
        return str(self._of(field, self.required(field), str, "a text"))

    def flag(self, field: str, default: bool = False) -> bool:
        """Give true or false."""
        return bool(self._of(field, self.any(field, default), bool, "true or false"))

    def whole(self, field: str, least: int, most: int = _INT64) -> int | None:
        """Give a whole number within a range."""
        found = self.any(field)
        if found is None:
            return None
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int):
            raise BadField(
                self.name(field), f"{self.name(field)} is a whole number, not {kind(found)}"
            )
        return int(self._within(field, found, least, most))

    def number(self, field: str, least: float, most: float = math.inf) -> float | None:
        """Give a finite number within a range."""
        found = self.any(field)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise BadField(self.name(field), f"{self.name(field)} is a number, not {kind(found)}")
        return float(self._within(field, found, least, most))

    def one_of(self, field: str, known: Sequence[str], default: str | None = None) -> str | None:
        """Give one of several words."""
        found = self.text(field, default)
        if found is not None and found not in known:
            raise BadField(
                self.name(field),
                f"{self.name(field)} is one of {', '.join(known)}, not {short(found)}",
            )
        return found

    def items(self, field: str) -> list[Any]:
        """Give a list of whatever; empty where it was not given."""
        return list(self._of(field, self.any(field, []), list, "a list"))

    def objects(self, field: str) -> list[Fields]:
        """Give a list of objects; empty where it was not given."""
        found = enumerate(self.items(field))
        return [Fields(each, f"{self.name(field)}[{i}]") for i, each in found]

    def object(self, field: str) -> Fields | None:
        """Give an object."""
        found = self.any(field)
        return None if found is None else Fields(found, self.name(field))

    def plain(self) -> dict[str, Any]:
        """Give everything as it came."""
        self._unread.clear()
        return dict(self._values)

    def copy(self) -> dict[str, Any]:
        """Give everything as it came, without having read it."""
        return dict(self._values)

    def ignore(self, *fields: str) -> None:
        """Take note of fields that change nothing of an answer."""
        self._unread.difference_update(fields)

    def refuse(
        self, field: str, why: str, *, unless: tuple[Any, ...] = (), code: str | None = None
    ) -> None:
        """Raise BadField where a field is given and asks for something that cannot be done.

        unless: values that ask for nothing.
        """
        if self.has(field) and not any(
            type(self._values[field]) is type(each) and self._values[field] == each
            for each in unless
        ):
            raise BadField(self.name(field), f"{self.name(field)}: {why}", code)
        self._unread.discard(field)

    def end(self) -> None:
        """Raise BadField for a field that nobody has read: it would be ignored in silence."""
        if self._unread:
            name = self.name(min(self._unread))
            raise BadField(name, f"{short(name)} is no parameter that this server knows")

    def _of(self, field: str, found: Any, type_: type, what: str) -> Any:
        if not isinstance(found, type_):
            raise BadField(self.name(field), f"{self.name(field)} is {what}, not {kind(found)}")
        return found

    def _within(self, field: str, found: float, least: float, most: float) -> float:
        if not least <= found <= most or not math.isfinite(found):
            upper = f"{least} or more" if most in (math.inf, _INT64) else f"{least} to {most}"
            raise BadField(self.name(field), f"{self.name(field)} is {upper}, not {short(found)}")
        return found


def parse_json(data: bytes) -> Any:
    """Read JSON strictly: UTF-8, no NaN, no surrogate halves, not too deep. Raises BadField."""
    try:
        found = json.loads(data.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadField(
            None, f"the body is no UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise BadField(None, f"the body is no JSON: {error.msg} at character {error.pos}") from None
    except (RecursionError, ValueError) as error:  # too deep; a number of too many digits
        raise BadField(
            None, f"the body is no JSON that can be read: {type(error).__name__}"
        ) from None
    _check(found)
    return found


def _no_constant(name: str) -> None:
    raise BadField(None, f"the body is no JSON: {name}")


def _check(found: Any) -> None:
    level = [found]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str) and not _is_text(each):
                raise BadField(None, "the body has half a surrogate pair, which is no text")
        if not below:
            return
        level = below
    raise BadField(None, f"the body has more than {_DEEPEST} objects and lists inside each other")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind(value: Any) -> str:
    """Name the JSON type of a value."""
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def short(value: Any) -> str:
    """Write a value for an error, not all of a long one."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
