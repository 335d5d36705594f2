"""A long experiment is cut into pieces: what is done is kept, and what differs is not mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pieces import NOT_DONE, Parts, Pieces, in_pieces


def test_the_next_call_goes_on(tmp_path: Path) -> None:
    out, ran = tmp_path / "x.json", list[str]()

    def call(seconds: float | None) -> list[int]:
        with in_pieces(out, {"rounds": 2}, seconds) as pieces:
            return [
                pieces.get(name, lambda name=name: ran.append(name) or len(ran)) for name in "abc"
            ]

    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            call(-1.0)  # the time is over at once: one piece a call
        assert ended.value.code == NOT_DONE
    assert call(-1.0) == [1, 2, 3]
    assert ran == ["a", "b", "c"]
    assert list(tmp_path.iterdir()) == []  # the record is the caller's


def test_pieces_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    Pieces(out, {"model": Path("a.gguf")}).get("one", lambda: (1, 2))
    assert Pieces(out, {"model": Path("a.gguf")}).get("one", lambda: 7) == [1, 2]
    with pytest.raises(SystemExit, match="another run"):
        Pieces(out, {"model": Path("b.gguf")})


def test_nothing_is_kept_without_a_record(tmp_path: Path) -> None:
    with in_pieces(None, {}) as pieces:
        assert pieces.get("one", lambda: 1) == 1
        assert set(pieces.disturbed()) == {"steal_share", "other_load_share"}
        folder = pieces.folder
        assert folder.is_dir()
    assert not folder.exists()


def test_a_piece_that_fails_is_run_again(tmp_path: Path) -> None:
    out = tmp_path / "x.json"

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), in_pieces(out, {}) as pieces:
        pieces.get("one", lambda: 1)
        pieces.get("two", fail)
    with in_pieces(out, {}) as pieces:
        assert pieces.get("one", fail) == 1


def test_a_call_goes_on_with_a_record(tmp_path: Path) -> None:
    out = tmp_path / "x.json"

    def parts_of(record: dict[str, Any]) -> Parts:
        return record["settings"], record["rows"]

    def call(*names: str, **settings: int) -> dict[str, Any]:
        with in_pieces(out, settings, parts_of=parts_of) as pieces:
            for name in names:
                pieces.get(name, lambda name=name: ran.append(name))
            out.write_text(json.dumps({"settings": settings, "rows": pieces.found}))
            return pieces.record

    ran = list[str]()
    assert call("a", n=1) == {}
    assert call("b", "c", n=1) == {"settings": {"n": 1}, "rows": {"a": None}}
    call("a", "b", "d", n=1)
    assert ran == ["a", "b", "c", "d"]
    with pytest.raises(SystemExit, match="another run"):
        call("a", n=2)
    for broken in ("", "[]", "{}"):
        out.write_text(broken)
        with pytest.raises(SystemExit, match=r"x\.json is no record of this tool"):
            call("a", n=1)
    assert list(tmp_path.iterdir()) == [out]


def test_no_piece_begins_that_would_end_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, out = [0.0], tmp_path / "x.json"
    monkeypatch.setattr("pieces.time.monotonic", lambda: now_s[0])

    def take(seconds: float) -> None:
        now_s[0] += seconds

    with pytest.raises(SystemExit) as ended, in_pieces(out, {}, 100) as pieces:
        for name, seconds in {"a": 40, "b": 10, "c": 11, "d": 1}.items():
            pieces.get(name, lambda seconds=seconds: take(seconds))
    assert ended.value.code == NOT_DONE
    assert now_s == [61.0]  # the longest took 40 s
