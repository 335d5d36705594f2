"""What a command or an engine writes is never what it reads, and never a model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import remoe_edge
import tiny_moe
from command_line import run
from commands import commands
from remoe_edge import Engine
from remoe_edge.cli import results
from remoe_edge.cli.file_arguments import FileArgument
from remoe_edge.errors import InputError, ReadError, RemoeError
from remoe_edge.files import pictures
from remoe_edge.files.atomic import replacing
from remoe_edge.telemetry.recording import Lines


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """The first shard of a model of two."""
    tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0", n_split=2)
    return tmp_path / "m-00001-of-00002.gguf"


def named(path: Path) -> list[Path]:
    """A file under other names: itself, a symbolic link, a hard link, a way around."""
    link, twin = path.with_name("link"), path.with_name("twin")
    link.symlink_to(path.name)
    os.link(path, twin)
    return [path, link, twin, path.parent / "." / "nowhere" / ".." / path.name]


@pytest.mark.parametrize("what", ["profile", "past_prompts", "trace", "telemetry"])
def test_no_file_of_an_engine_is_its_model(split: Path, what: str) -> None:
    second = split.with_name("m-00002-of-00002.gguf")
    before = split.read_bytes(), second.read_bytes()
    for output in [*named(split), second]:
        with pytest.raises(InputError):
            Engine(split, cache="100%", n_ctx=64, **{what: output})
    assert (split.read_bytes(), second.read_bytes()) == before


def test_no_two_files_of_an_engine_are_one(split: Path, tmp_path: Path) -> None:
    kept, link = tmp_path / "kept", tmp_path / "also"
    link.symlink_to("kept")
    for one, other in (("profile", "past_prompts"), ("trace", "telemetry"), ("profile", "trace")):
        for again in (kept, link):
            with pytest.raises(InputError, match="is the input"):
                Engine(split, cache="100%", **{one: kept, other: again})
    assert not kept.exists()


def outputs() -> list[tuple[str, str]]:
    """Every option of every command that names a file to be written."""
    return [
        (name, parameter.opts[-1])
        for name, command in commands()
        for parameter in command.params
        if isinstance(parameter.type, FileArgument) and parameter.type._is_written
    ]


def test_outputs_are_found() -> None:
    assert ("trace", "--output") in outputs()
    assert ("chat", "--telemetry") in outputs()
    assert len(outputs()) > 15


@pytest.mark.parametrize(("name", "option"), outputs())
def test_no_command_writes_over_what_it_reads(
    split: Path, capsys: pytest.CaptureFixture[str], name: str, option: str
) -> None:
    """Whatever the command makes of the rest: it says so before it looks at any of its files."""
    command = dict(commands())[name]
    reads = [
        parameter
        for parameter in command.params
        if isinstance(parameter.type, FileArgument) and option not in parameter.opts
    ]
    before = split.read_bytes()
    for parameter in reads:
        arguments: list[str | Path] = [*name.split()]
        for other in command.params:
            if isinstance(other, click.Argument) and other is not parameter and other.required:
                arguments.append(split.with_name("another"))
        if isinstance(parameter, click.Argument):
            arguments.append(split)
        else:
            arguments += [parameter.opts[-1], split]
        outcome = run(capsys, *arguments, option, split)
        assert outcome.code == 1, (parameter.name, outcome)
        assert "is the input" in outcome.error(), (parameter.name, outcome)
    assert split.read_bytes() == before


def test_no_command_writes_over_a_shard(split: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = split.with_name("m-00002-of-00002.gguf")
    outcome = run(capsys, "chat", "-m", split, "-p", "hi", "--telemetry", second)
    assert "is the input" in outcome.error()


def test_routers_are_an_input(split: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routers = split.with_name("r.gguf")
    routers.write_bytes(b"GGUF")
    outcome = run(capsys, "chat", "-m", split, "--routers", routers, "--telemetry", routers)
    assert "is the input" in outcome.error()


def write_with_replacing(path: Path) -> None:
    with replacing([path]) as (part,):
        part.write_text("something else")


@pytest.mark.parametrize("what", ["profile", "past_prompts", "trace", "telemetry", "replacing"])
def test_a_model_is_replaced_by_nothing_else(split: Path, tmp_path: Path, what: str) -> None:
    """A slip of the finger (`-o other.gguf`) costs no download of a day."""
    other = tiny_moe.make(tmp_path / "other.gguf", "olmoe", "Q8_0")
    before = other.read_bytes()
    writes: Callable[[], Any] = lambda: Engine(split, cache="100%", **{what: other}).close()  # noqa: E731
    if what == "replacing":
        writes = lambda: write_with_replacing(other)  # noqa: E731
    with pytest.raises(RemoeError):
        writes()
    assert other.read_bytes() == before


def test_a_model_may_be_replaced_by_a_model(split: Path, tmp_path: Path) -> None:
    other = tiny_moe.make(tmp_path / "other.gguf", "olmoe", "Q8_0")
    with replacing([other]) as (part,):
        part.write_bytes(split.read_bytes())
    assert other.read_bytes() == split.read_bytes()


def test_a_device_is_written_to_and_stays(split: Path, tmp_path: Path) -> None:
    """`-o /dev/null`, run as root, put a file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_with_replacing(pipe)
        assert os.read(reader, 100) == b"something else"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    for device in ("null", "full"):
        before = os.stat(f"/dev/{device}").st_rdev
        link = tmp_path / device
        link.symlink_to(f"/dev/{device}")
        if device == "full":
            with pytest.raises(ReadError, match="No space left"):
                write_with_replacing(link)
        else:
            write_with_replacing(link)
        assert os.stat(f"/dev/{device}").st_rdev == before
    with pytest.raises(InputError, match="no file"):
        Engine(split, cache="100%", n_ctx=64, trace=pipe)
    assert pipe.is_fifo()


def test_what_a_process_has_open_is_written_to_and_stays(split: Path, tmp_path: Path) -> None:
    """`-o /dev/stdout >> results` put another file in the place of the results that were there.

    A trace, run as root, put one in the place of /dev/stdout itself.
    """
    results = tmp_path / "results"
    results.write_text("earlier, ")
    link = tmp_path / "link"
    with results.open("ab", buffering=0) as file:
        link.symlink_to(f"/dev/fd/{file.fileno()}")
        for name in (
            link,
            Path(f"/proc/self/fd/{file.fileno()}"),
            Path(f"/dev/fd/{file.fileno()}"),
        ):
            write_with_replacing(name)
            lines = Lines(name, print)
            lines.write({})
            lines.close()
            with pytest.raises(InputError, match="no file"):
                Engine(split, cache="100%", n_ctx=64, trace=name)
        file.write(b"later")
    assert results.read_text() == "earlier, " + "something else{}\n" * 3 + "later"


def test_a_trace_goes_where_a_link_points(split: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("trace")
    with Engine(split, cache="100%", n_ctx=64, publish=False, trace=link) as engine:
        engine.evaluate([1, 2, 3])
    assert link.is_symlink()
    assert (tmp_path / "trace").read_bytes()[:8] == b"REMOETRC"


def test_two_engines_record_into_no_one_file(split: Path, tmp_path: Path) -> None:
    """They wrote into one another's, and the second to end found no file of its own."""
    settings: dict[str, Any] = {"cache": "100%", "n_ctx": 64, "publish": False}
    with Engine(split, trace=tmp_path / "trace", **settings) as engine:
        with pytest.raises(InputError, match="is being recorded by another engine"):
            Engine(split, trace=tmp_path / "trace", **settings)
        engine.evaluate([1, 2, 3])
    assert sorted(each.name for each in tmp_path.glob("trace*")) == ["trace"]
    with Engine(split, trace=tmp_path / "trace", **settings) as engine:
        engine.evaluate([1, 2, 3])


@pytest.mark.parametrize(
    "command",
    [
        ["profile", "TRACE", "-o"],
        ["simulate", "TRACE", "-o"],
        ["plan", "-m", "TRACE", "--price", "steps", "--slo", "tpot=1s", "-o"],
        ["price", "-m", "TRACE", "--text", "TRACE", "-o"],
        ["bench", "-m", "TRACE", "--csv"],
        ["trace", "-m", "TRACE", "--prompts", "TRACE", "-o"],
    ],
    ids=lambda words: words[0],
)
def test_an_outputs_folder_is_looked_for_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """And not after what takes long: fitting a profile, measuring a machine."""
    made = tmp_path / "t.npz"
    with made.open("wb") as file:
        np.savez(file, experts=np.tile(np.arange(2), (2, 300, 1)))
    words = [str(made) if each == "TRACE" else each for each in command]
    missing = tmp_path / "missing"
    assert f"{missing} does not exist" in run(capsys, *words, missing / "x").error()


def test_a_result_that_cannot_be_written_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "t.npz"
    with made.open("wb") as file:
        np.savez(file, experts=np.tile(np.arange(2), (2, 300, 1)))
    done = run(capsys, "simulate", made, "--policy", "lru", "--cache", "50%", "-o", "/dev/full")
    assert done.code == 1
    assert "No space left" in done.err
    assert "lru" in done.out, done


def test_a_picture_is_of_a_kind_that_can_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for name in ("picture.xyz", "picture"):
        words = ("price", "-m", tmp_path / "m", "--text", tmp_path / "t", "--plot", tmp_path / name)
        assert "ends in .png, .svg or .pdf" in run(capsys, *words).error()


def test_of_a_set_no_device_is_part(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(InputError, match="no file"),
        replacing([tmp_path / "one", tmp_path / "pipe"]) as parts,
    ):
        assert not parts
    assert (tmp_path / "pipe").is_fifo()
    assert not (tmp_path / "one").exists()


def test_a_result_that_cannot_be_shown_is_written(tmp_path: Path) -> None:
    """`| head` may be gone by the time that hours of measuring have ended."""

    def gone() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        results.give({"a": 1}, tmp_path / "r.json", as_json=False, show=gone)
    assert (tmp_path / "r.json").read_text() == '{\n "a": 1\n}\n'


# Kernel files, scratch folders, a token of Ray's, a run's own status, and a folder as a whole.
NOT_WHOLE = {
    "bench/box.py", "bench/charts.py", "convert/export_hf.py", "deploy/ray_process.py",
    "machine/disk.py", "remote/keys.py", "telemetry/status.py",
}  # fmt: skip


def test_files_are_written_by_one_helper() -> None:
    """Whole, with what a link names replaced and not the link, and never over a model."""
    package = Path(remoe_edge.__file__).parent
    raw = re.compile(r"\.(?:write_text|write_bytes|savefig)\(|os\.(?:replace|rename)\(")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if raw.search(path.read_text())
    }
    assert found - NOT_WHOLE == {"files/atomic.py", "files/pictures.py"}
    assert found >= NOT_WHOLE


def test_a_picture_is_written_like_any_file(split: Path, tmp_path: Path) -> None:
    drawn = pytest.importorskip("matplotlib.figure").Figure()
    far, link, bad = tmp_path / "far.png", tmp_path / "link.png", tmp_path / "p.odd"
    link.symlink_to(far.name)
    pictures.save(drawn, link, dpi=10)
    assert link.is_symlink()
    assert far.read_bytes().startswith(b"\x89PNG")
    bad.write_text("kept")
    with pytest.raises(InputError, match="odd"):
        pictures.save(drawn, bad, dpi=10)
    assert bad.read_text() == "kept"
    model, before = tmp_path / "m.png", split.read_bytes()
    model.symlink_to(split.name)
    with pytest.raises(InputError, match="is a GGUF, which would be lost"):
        pictures.save(drawn, model, dpi=10)
    assert split.read_bytes() == before


def test_a_recording_of_nothing_replaces_no_trace(split: Path, tmp_path: Path) -> None:
    """What ends an engine before its first step, as a mistake in a setting does, costs no old trace."""
    trace, settings = tmp_path / "t.trace", {"cache": "100%", "n_ctx": 64, "publish": False}
    Engine(split, trace=trace, **settings).close()
    assert not list(tmp_path.glob("t.trace*"))
    with Engine(split, trace=trace, **settings) as engine:
        engine.evaluate([1, 2, 3])
    before = trace.read_bytes()
    with pytest.raises(InputError), Engine(split, trace=trace, **settings) as engine:
        engine.evaluate([])
    assert trace.read_bytes() == before
    assert [each.name for each in tmp_path.glob("*t.trace*")] == ["t.trace"]
