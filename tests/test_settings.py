"""Every setting of an engine is checked by name, in one place, and nothing is clipped in silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import tiny_moe
from remoe_edge import Engine, EngineSettings, InputError
from remoe_edge.engine.settings import SettingsKeywords


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("settings") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache", 1500), ("cache", None), ("cache", "nan%"), ("cache", "-1MiB"),
        ("routers", 3), ("routers", ""), ("policy", "best"), ("policy", 1),
        ("prefetch", "sometimes"), ("prefetch", True), ("flash_attention", "maybe"),
        ("flash_attention", False), ("io", "uring"), ("io", None),
        ("n_ctx", -1), ("n_ctx", 1 << 40), ("n_ctx", 12.5), ("n_ctx", "4096"), ("n_ctx", True),
        ("n_batch", 0), ("n_batch", 1 << 40), ("n_batch", None), ("n_ubatch", -4),
        ("threads", 0), ("threads", -2), ("threads", 513), ("threads", 2.0), ("threads", True),
        ("depth", -1), ("depth", 1 << 31), ("depth", "deep"),
        ("repack", "no"), ("stream", 1), ("direct", None), ("lock", "yes"), ("verbose", 2),
        ("peers", 3), ("peers", [7]), ("peers", ["127.0.0.1:1", "localhost:1"]),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    words = {"cache": "cache|size|share", "n_ctx": "n_ctx|context", "routers": "routers"}
    with pytest.raises(InputError, match=words.get(name, name)):
        EngineSettings(**{name: value})


def test_keywords_name_every_field_and_no_other() -> None:
    fields = {each.name for each in dataclasses.fields(EngineSettings)}
    assert set(get_type_hints(SettingsKeywords)) == fields | {"io_backend"}


def test_settings_and_keywords_together(model: Path) -> None:
    settings = EngineSettings(cache="50%", n_ctx=256, threads=1)
    with Engine(model, settings, n_ctx=128) as engine:
        assert engine.settings == settings.replace(n_ctx=128)
        assert engine.n_ctx == 128
        assert engine.threads == 1
    with pytest.raises(TypeError, match="no setting 'colour'"):
        Engine(model, colour="red")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="EngineSettings"):
        Engine(model, "50%")  # type: ignore[arg-type]


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineSettings().cache = "50%"  # type: ignore[misc]


def test_the_old_name_of_io_goes_on_working() -> None:
    with pytest.warns(DeprecationWarning, match="io_backend is now io"):
        assert EngineSettings.of(None, {"io_backend": "pread"}).io == "pread"
    with pytest.raises(InputError, match="old name"):
        EngineSettings.of(None, {"io_backend": "pread", "io": "auto"})


def test_a_batch_that_is_cut_to_the_context_is_said(model: Path) -> None:
    with Engine(model, cache="50%", n_ctx=64, n_batch=1000, n_ubatch=100) as engine:
        assert "n_batch 1000 is more than the context: 64 is used" in engine.notes
        assert "n_ubatch 100 is more than the context: 64 is used" in engine.notes
    with Engine(model, cache="50%", n_ctx=256, n_batch=32, n_ubatch=64) as engine:
        assert "n_ubatch 64 is more than n_batch: 32 is used" in engine.notes
    with Engine(model, cache="50%", n_ctx=64) as engine:  # the defaults are nobody's wish
        assert not any("batch" in note for note in engine.notes)


def test_a_planned_budget_takes_a_planner(model: Path) -> None:
    from remoe_edge.engine.engine import Engine as Core

    with pytest.raises(InputError, match="planner"):
        Core(model, cache="plan:250ms")
