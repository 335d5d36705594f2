"""Files are written whole or not at all, with the permissions that a plain open() gives."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from remoe_edge.errors import ReadError
from remoe_edge.files.atomic import replacing
from remoe_edge.profile import save_profile


@pytest.fixture
def careful() -> Iterator[None]:
    """Run under a umask that is not the usual one."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str) -> None:
    with replacing([path]) as (part,):
        part.write_text(text)


@pytest.mark.usefixtures("careful")
def test_a_new_file_is_as_a_plain_open_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_text("x")

    def refuse(mask: int) -> int:
        raise AssertionError("another thread's files would be made under this mask")

    monkeypatch.setattr(os, "umask", refuse)
    write(tmp_path / "ours", "x")
    save_profile(b"x", tmp_path / "profile")
    monkeypatch.undo()
    assert mode(tmp_path / "plain") == 0o640
    assert mode(tmp_path / "ours") == mode(tmp_path / "profile") == 0o640


@pytest.mark.usefixtures("careful")
@pytest.mark.parametrize("permissions", [0o600, 0o664, 0o400])
def test_a_file_that_is_there_keeps_its_permissions(tmp_path: Path, permissions: int) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    path.chmod(permissions)
    write(path, "new")
    assert (path.read_text(), mode(path)) == ("new", permissions)


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/real").write_text("old")
    (tmp_path / "link").symlink_to("far/real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far/real").read_text() == "new"
    assert sorted(each.name for each in (tmp_path / "far").iterdir()) == ["real"]


def test_after_an_error_the_old_file_is_there_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing([path]) as (part,):
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ReadError, match="cannot write"):
        write(tmp_path / "no" / "file", "x")


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    write(path, "x")
    assert path.read_text() == "x"
