"""Rearranged weights where the compiler broke AMX: refused, not crashed on."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_moe
from remoe_edge.engine.engine import Engine
from remoe_edge.errors import UnsupportedError
from remoe_edge.inspect import doctor
from remoe_edge.machine import amx


@pytest.mark.parametrize(
    ("version", "breaks"),
    [
        ((11, 4), True), ((11, 5), False), ((12, 2), True), ((12, 4), False),
        ((13, 2), True), ((13, 3), False), ((14, 1), False), ((15, 0), False),
    ],
)  # fmt: skip
def test_which_compilers_drop_a_tiles_configuration(version: tuple[int, int], breaks: bool) -> None:
    assert amx.breaks_tiles(*version) is breaks


def test_the_compiler_is_read_from_the_library() -> None:
    assert amx.compiler(b"\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0") == (12, 2)
    assert amx.compiler(b"\0clang version 18.1.3\0") is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("amx") / "tiny.gguf", "qwen3moe", "Q4_0")


def test_repacking_is_refused_and_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "fault", lambda: "its AMX code crashes")
    for stream in (True, False):
        with pytest.raises(UnsupportedError, match="its AMX code crashes: run with --no-repack"):
            Engine(model, repack=True, stream=stream)
    Engine(model).close()
    (check,) = [c for c in doctor.examine(model) if c.name == "repacking"]
    assert check == doctor.Check("repacking", doctor.OFF, "its AMX code crashes", amx.REMEDY)
