"""Module names of version 0.1 lead to the modules that have their contents now."""

from __future__ import annotations

import importlib
import sys

import pytest

from remoe_edge._moved import NEW_NAMES


@pytest.mark.parametrize("old", sorted(NEW_NAMES))
def test_an_old_name_is_the_new_module_and_says_so(old: str) -> None:
    new = importlib.import_module(f"remoe_edge.{NEW_NAMES[old]}")
    sys.modules.pop(f"remoe_edge.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"is now remoe_edge.{NEW_NAMES[old]}"):
        assert importlib.import_module(f"remoe_edge.{old}") is new


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("remoe_edge.no_such_module")
