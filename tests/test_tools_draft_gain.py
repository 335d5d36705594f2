"""A measurement of drafts goes on where it was cut, and mixes no two ways of measuring."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import draft_gain


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Have nothing measured; give what would have been."""
    asked: list[tuple[str, ...]] = []

    def rows(engine: Any, path: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
        asked.append((engine, path.name))
        for draft in args.drafts:
            ms = 10.0 if draft == "off" else 8.0
            yield {"window": 0, "draft": draft, "ms": ms, "mib": 1.0, "right": 3, "guessed": 4}

    monkeypatch.setattr(
        draft_gain, "Engine", lambda model, settings: contextlib.nullcontext(settings.cache)
    )
    monkeypatch.setattr(draft_gain, "measured", rows)
    return asked


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, Any]:
    texts = ["a.txt", "b.txt"]
    monkeypatch.setattr(
        "sys.argv",
        ["draft_gain.py", "m.gguf", "--text", *texts, "-o", str(out), *arguments],
    )
    draft_gain.main()
    record: dict[str, Any] = json.loads(out.read_text())
    return record


def test_what_a_record_holds_is_not_measured_again(
    measured: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, tmp_path / "r", "--cache", "25%")
    record = run(monkeypatch, tmp_path / "r", "--cache", "25%", "70%")
    assert measured == [("25%", "a.txt"), ("25%", "b.txt"), ("70%", "a.txt"), ("70%", "b.txt")]
    assert len(record["rows"]) == 8
    assert capsys.readouterr().out.count("+25.0 %") == 6  # 2 texts, then 2 for each cache


def test_an_interrupted_run_goes_on(
    measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        begun = draft_gain.measured
        patch.setattr(
            draft_gain, "measured",
            lambda *given: die() if len(measured) == 3 else begun(*given),
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            run(patch, tmp_path / "r", "--cache", "25%", "70%")
    assert not (tmp_path / "r").exists()
    record = run(monkeypatch, tmp_path / "r", "--cache", "25%", "70%")
    assert measured == [("25%", "a.txt"), ("25%", "b.txt"), ("70%", "a.txt"), ("70%", "b.txt")]
    assert len(record["rows"]) == 8
    assert list(tmp_path.iterdir()) == [tmp_path / "r"]


def test_a_record_of_another_kind_is_refused_and_kept(
    measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = run(monkeypatch, tmp_path / "r", "--cache", "25%")
    with pytest.raises(SystemExit, match="another run"):
        run(monkeypatch, tmp_path / "r", "--cache", "70%", "--tokens", "9")
    assert json.loads((tmp_path / "r").read_text()) == before
