"""Paths of every kind that a kernel takes: no UTF-8, too long, links into a cache, tmpfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_dense
import tiny_moe
from command_line import run
from remoe_edge import Engine
from remoe_edge.convert.extract import extract
from remoe_edge.convert.merge import merge
from remoe_edge.files.overlay import load_overlay
from remoe_edge.inspect.info import describe
from remoe_edge.native import _core

ODD = os.fsdecode(b"caf\xe9 \xff.gguf")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remoe_edge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=600,
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / os.fsdecode(b"d\xff")
    folder.mkdir()
    path = tiny_moe.make(folder / "m.gguf", "qwen3moe", "Q8_0")
    return path.rename(folder / ODD)


def test_every_command_takes_a_path_that_is_no_utf8(odd: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"out\xfe")
    folder.mkdir()
    prompts = folder / os.fsdecode(b"p\xff.txt")
    prompts.write_text("\n---\n".join(f"prompt {i} of some words" for i in range(12)))
    trace, profile = folder / os.fsdecode(b"t\xff.rtrace"), folder / os.fsdecode(b"p\xff.rprof")
    overlay, merged = folder / os.fsdecode(b"o\xff.gguf"), folder / os.fsdecode(b"m\xff.gguf")
    greedy = ["--raw", "-p", "hi", "-n", "2", "--temp", "0"]
    for arguments in (
        ["info", odd],
        ["info", odd, "--json"],
        ["chat", "-m", odd, *greedy],
        ["chat", "-m", odd, "--no-stream", *greedy],
        ["trace", "-m", odd, "--prompts", prompts, "--raw", "-n", "240", "-o", trace],
        ["simulate", trace, "--cache", "80%"],
        ["profile", trace, "-o", profile],
        ["convert", "extract", odd, "-o", overlay],
        ["info", overlay],
        ["convert", "merge", odd, overlay, "-o", merged],
        ["chat", "-m", merged, "--routers", overlay, "--profile", profile, *greedy],
    ):
        done = command(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert merged.read_bytes() == odd.read_bytes()


def test_errors_about_such_a_path_are_one_line(tmp_path: Path) -> None:
    missing = tmp_path / ODD
    for arguments in (
        ["info", missing],
        ["chat", "-m", missing],
        ["bench", missing],
        ["probe", missing],
        ["simulate", missing],
        ["convert", "extract", missing, "-o", tmp_path / "o.gguf"],
    ):
        done = command(*arguments)
        assert done.returncode in (1, 2), done
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stderr.splitlines()[-1].startswith("Error: "), done.stderr


def test_a_path_of_4096_bytes(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = Path("/" + "/".join(["x" * 200] * 21) + "/m.gguf")
    assert len(os.fsencode(long)) > 4096
    for arguments in (
        ["info", long],
        ["chat", "-m", long],
        ["bench", long],
        ["probe", long],
        ["simulate", long],
        ["convert", "extract", long, "-o", tmp_path / "o.gguf"],
        ["convert", "extract", odd, "-o", long],
        ["convert", "merge", odd, odd, "-o", long],
        ["profile", long, "-o", tmp_path / "p.rprof"],
        ["chat", "-m", odd, "--raw", "-p", "hi", "-n", "1", "--profile", long],
    ):
        done = run(capsys, *arguments)
        assert done.code in (1, 2), (arguments[:2], done)
        assert "Traceback" not in done.err, (arguments[:2], done)
        assert done.err.splitlines()[-1].startswith("Error: "), (arguments[:2], done)


def test_an_output_with_the_longest_name(odd: Path, tmp_path: Path) -> None:
    output = tmp_path / ("o" * 250 + ".gguf")
    extract(odd, output)
    assert load_overlay(output, _core.ModelFile.open(odd))


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Two shards as a Hugging Face cache keeps them: links to files with names of their own."""
    (tmp_path / "split").mkdir()
    tiny_moe.make(tmp_path / "split" / "m.gguf", "qwen3moe", "Q8_0", n_split=2)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "r"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, shard in enumerate(sorted((tmp_path / "split").iterdir())):
        shutil.move(shard, blobs / f"abc{i}")
        (snapshot / shard.name).symlink_to(f"../../blobs/abc{i}")
    return min(snapshot.iterdir())


def test_shards_behind_links(linked: Path, tmp_path: Path) -> None:
    assert len(describe(linked)["shards"]) == 2
    with Engine(linked, cache="50%", publish=False) as engine:
        engine.evaluate([1, 2, 3])
    overlay = tmp_path / "o.gguf"
    extract(linked, overlay)
    merged = merge(linked, overlay, tmp_path / "x-00001-of-00002.gguf")
    assert [path.read_bytes() for path in merged] == [
        path.read_bytes() for path in sorted(linked.parent.iterdir())
    ]


def test_bench_finds_shards_behind_links(linked: Path, tmp_path: Path) -> None:
    asked = [
        "--limit",
        "1",
        "--tokens",
        "4",
        "--warm",
        "1",
        "--rounds",
        "1",
        "--probe-seconds",
        "0",
    ]
    done = command("bench", linked, *asked)
    assert done.returncode == 0, done.stderr


def test_a_dense_model_by_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    path = tiny_dense.make(tmp_path / "dense.gguf").rename(tmp_path / ODD)
    with Engine(path, publish=False) as engine:
        assert engine.evaluate([1, 2]).std() > 0


def test_a_file_with_holes_reads_as_zeros(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "F32")
    whole = tmp_path / "whole.gguf"
    for tensor in _core.ModelFile.open(path).tensors:
        if tensor.name == "blk.1.ffn_down_exps.weight":
            raw = path.read_bytes()
            zeros = bytes(tensor.n_bytes)
            whole.write_bytes(raw[: tensor.offset] + zeros + raw[tensor.offset + tensor.n_bytes :])
    raw = whole.read_bytes()
    with open(path, "wb") as file:  # only what is not zero is written
        file.truncate(len(raw))
        for at in range(0, len(raw), 4096):
            piece = raw[at : at + 4096]
            if piece.strip(b"\0"):
                file.seek(at)
                file.write(piece)
    assert path.stat().st_blocks < whole.stat().st_blocks
    rows = []
    for each in (path, whole):
        with Engine(each, cache="30%", publish=False) as engine:
            rows.append(engine.evaluate([1, 2, 3]).tobytes())
    assert rows[0] == rows[1]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no tmpfs")
def test_a_file_system_of_memory(odd: Path) -> None:
    path = Path("/dev/shm") / f"remoe-edge-test-{os.getpid()}.gguf"
    try:
        shutil.copy(odd, path)
        rows = []
        for each in (path, odd):
            with Engine(each, cache="50%", publish=False) as engine:
                rows.append(engine.evaluate([1, 2, 3]).tobytes())
        assert rows[0] == rows[1]
    finally:
        path.unlink(missing_ok=True)
