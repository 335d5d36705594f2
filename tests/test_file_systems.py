"""File systems that are no plain ones: overlays as containers have them, and FUSE."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import fuse_folder
import tiny_moe
from remoe_edge import Engine, ReadError
from remoe_edge.engine.engine import Engine as CoreEngine

PROMPT = list(range(5, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a split model, of whole pages and not."""
    folder = tmp_path_factory.mktemp("source")
    tiny_moe.make(folder / "m.gguf", "qwen3moe", "Q8_0", n_split=2)
    return folder


def first_of(folder: Path) -> Path:
    return folder / "m-00001-of-00002.gguf"


def opened(path: Path, **settings: object) -> CoreEngine:
    keywords = {"cache": "30%", "n_ctx": 64, "threads": 1, "prefetch": "off", **settings}
    return Engine(path, **keywords)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(source: Path) -> npt.NDArray[np.float32]:
    with opened(first_of(source)) as engine:
        return engine.evaluate(PROMPT)


@pytest.mark.parametrize("io", ["io_uring", "pread"])
@pytest.mark.parametrize("options", [(), ("refuse_direct",), ("uncached",), ("lying_clock",)])
def test_a_model_behind_fuse(
    source: Path,
    tmp_path: Path,
    expected: npt.NDArray[np.float32],
    io: str,
    options: tuple[str, ...],
) -> None:
    with fuse_folder.mounted(source, tmp_path, *options) as where:
        try:
            engine = opened(first_of(where), io=io)
        except Exception as error:
            if io != "io_uring":
                raise
            pytest.skip(f"no io_uring here: {error}")
        with engine:
            for _ in range(3):
                assert np.array_equal(engine.evaluate(PROMPT), expected)
            if "refuse_direct" in options:
                assert any("O_DIRECT refused" in note for note in engine.notes), engine.notes
                assert engine.native.io["direct"] is False


def test_a_fuse_that_fails_for_a_while(
    source: Path, tmp_path: Path, expected: npt.NDArray[np.float32]
) -> None:
    where, behind = tmp_path / "where", tmp_path / "behind"
    where.mkdir()
    shutil.copytree(source, behind)
    with (
        fuse_folder.mounted(behind, where, "uncached"),
        opened(first_of(where), policy="lru") as engine,
    ):
        assert np.array_equal(engine.evaluate(PROMPT), expected)
        (behind / ".fail").touch()
        with pytest.raises(ReadError, match="Input/output error"):
            engine.evaluate(PROMPT)
        (behind / ".fail").unlink()
        assert np.array_equal(engine.evaluate(PROMPT), expected)


@contextlib.contextmanager
def overlay(source: Path, folder: Path) -> Iterator[Path]:
    """Lay an empty folder over `source`, as a container's image is laid under its changes."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    parts = {name: folder / name for name in ("upper", "work", "merged")}
    for part in parts.values():
        part.mkdir()
    merged = parts["merged"]
    how = f"lowerdir={source},upperdir={parts['upper']},workdir={parts['work']}"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", how, str(merged)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    try:
        yield merged
    finally:
        subprocess.run(["umount", "-l", str(merged)], check=True)


def touch(path: Path) -> None:
    os.utime(path)


def make_private(path: Path) -> None:
    path.chmod(0o600)


def open_to_write(path: Path) -> None:
    path.open("r+b").close()


def write_the_same(path: Path) -> None:
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data)


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def give_another_name(path: Path) -> None:
    path.rename(path.with_name("another"))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "change",
    [touch, make_private, open_to_write, write_the_same, replace_by_a_copy, give_another_name, remove],
)  # fmt: skip
def test_copy_up_under_a_running_engine(
    source: Path, tmp_path: Path, expected: npt.NDArray[np.float32], change: Callable[[Path], None]
) -> None:
    """The first write to a file of an overlay puts a copy in its place; its bytes are the same."""
    with overlay(source, tmp_path) as merged, opened(first_of(merged)) as engine:
        assert np.array_equal(engine.evaluate(PROMPT), expected)
        for shard in sorted(merged.glob("m-*.gguf")):
            change(shard)
        assert np.array_equal(engine.evaluate(PROMPT), expected)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_another(path: Path) -> None:
    other = bytearray(path.read_bytes())
    other[-5000] ^= 1
    copy = path.with_name("copy")
    copy.write_bytes(other)
    copy.replace(path)


@pytest.mark.parametrize("change", [append, truncate, replace_by_another])
def test_another_file_on_an_overlay_is_named(
    source: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    with overlay(source, tmp_path) as merged, opened(first_of(merged)) as engine:
        engine.evaluate(PROMPT)
        last = sorted(merged.glob("m-*.gguf"))[-1]
        change(last)
        with pytest.raises(ReadError, match=last.name):
            engine.evaluate(PROMPT)


def test_one_byte_in_place_with_its_time_set_back(source: Path, tmp_path: Path) -> None:
    """As `rsync --inplace --times` leaves it: only the time of the change itself tells."""
    path = Path(shutil.copy(source / "m-00002-of-00002.gguf", tmp_path))
    shutil.copy(first_of(source), tmp_path)
    with opened(first_of(tmp_path)) as engine:
        engine.evaluate(PROMPT)
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(before.st_size // 2)
            byte = file.read(1)
            file.seek(before.st_size // 2)
            file.write(bytes([byte[0] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(ReadError, match=f"{path.name} was modified"):
            engine.evaluate(PROMPT)
