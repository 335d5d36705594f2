"""`remoe-edge top`, and how engines show themselves to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from command_line import SECONDS, run, start
from remoe_edge import Engine
from remoe_edge.engine.observers import Step
from remoe_edge.telemetry import status
from remoe_edge.telemetry.status import Status, running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("top") / "tiny.gguf", "qwen3moe", "Q4_0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Look at no engines but this test's."""
    monkeypatch.setattr(status, "folders", lambda runtime=None: [tmp_path / "run"])
    return tmp_path / "run"


def test_an_engine_is_seen_from_load_to_close(model: Path, folder: Path) -> None:
    with Engine(model, cache="30%", publish=folder) as engine:
        (seen,) = running([folder])
        assert (seen["state"], seen["pid"]) == ("idle", os.getpid())
        assert seen["model"] == str(model)
        assert seen["recent"]["tokens_per_s"] is None
        pieces = engine.generate("hello", temperature=0, max_tokens=30)
        next(pieces)
        assert running([folder])[0]["state"] in ("prefill", "decode")
        list(pieces)
        (seen,) = running([folder])
        assert seen["state"] == "idle"
        totals, answer = seen["totals"], engine.answer
        assert (totals["answers"], totals["n_generated"]) == (1, 30)
        assert totals["n_prompt"] == answer.n_prompt
        for name in ("hits", "misses", "bytes_read"):
            assert totals[name] == getattr(answer, name)
        assert 0 <= seen["recent"]["hit_rate"] <= 1
        assert seen["recent"]["tokens_per_s"] > 0
    assert running([folder]) == []
    assert list(folder.iterdir()) == []


def test_rates_are_those_of_the_last_tokens(folder: Path) -> None:
    made = Status(folder)
    for number in range(40):
        hits = 0 if number < 24 else 30  # of the last 16 tokens, three experts in four
        made.on_step(
            Step(
                "decode",
                1,
                number,
                number + 0.5,
                hits=hits,
                misses=10,
                bytes_read=1 << 20,
                stall_ms=125.0,
            )
        )
    made._write()
    (seen,) = running([folder])
    assert seen["recent"] == {
        "tokens_per_s": 2.0, "hit_rate": 0.75, "read_mib_per_s": 2.0, "stall_share": 0.25,
    }  # fmt: skip
    assert seen["totals"]["hits"] == 16 * 30
    made.on_close()
    made.on_close()


def test_only_the_user_can_read_it(folder: Path) -> None:
    made = Status(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    made.on_close()


def test_another_users_or_an_open_folder_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for place in (shared, link):
        with pytest.raises(PermissionError, match="not this user's own"):
            Status(place)
        assert running([place]) == []
        with Engine(model, publish=place) as engine:  # and the engine runs all the same
            assert engine.notes[-1].startswith("not shown by `remoe-edge top`: ")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError):
        Status(tmp_path)


def test_what_a_dead_engine_left_is_removed(folder: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from remoe_edge.telemetry.status import Status\n"
        "Status(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], timeout=SECONDS)
    assert done.returncode == -signal.SIGKILL
    alive = Status(folder)
    assert len(list(folder.iterdir())) == 2
    assert [seen["pid"] for seen in running([folder])] == [os.getpid()]
    assert list(folder.iterdir()) == [alive.path]
    alive.on_close()


def test_a_file_that_is_being_written_or_is_no_status(folder: Path) -> None:
    made = Status(folder)
    os.pwrite(made._fd, b"half of something else", 100)
    assert running([folder]) == []
    assert made.path.exists()  # it is held: not ours to remove
    made._write()
    assert len(running([folder])) == 1
    for text in (b"0,5", b"[" * 3000, b"\xff"):  # whole, and no status: a writer that was wrong
        block = text.ljust(4096 - 9)
        os.pwrite(made._fd, b"%08x " % zlib.crc32(block) + block, 0)
        assert running([folder]) == []
    made._write()
    (folder / "x.status").symlink_to("/etc/passwd")
    (folder / "y.status").mkdir()
    assert len(running([folder])) == 1
    assert (folder / "y.status").is_dir()
    made.on_close()


def test_a_model_name_of_any_length_fits(folder: Path) -> None:
    made = Status(folder)
    made.on_load({"model": "ä" * 5000})
    assert running([folder])[0]["model"].endswith("ä")
    assert made.path.stat().st_size == 4096
    made.on_close()


def test_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(f"/tmp/remoe-edge-{os.getuid()}")
    assert status.folders()[-1] == own
    assert status.folders("/run/xyz")[0] == Path("/run/xyz/remoe-edge")
    assert status.folders("relative") == status.folders()


# --- the command ---


def test_nobody_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "top", "--once", "--interval", "0.2")
    assert outcome.code == 0
    assert outcome.out.splitlines()[1:] == ["no engine is running"]
    assert outcome.err == ""


def test_several_engines_are_listed(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine(model, cache="30%", publish=folder) as one, Engine(model, publish=folder):
        "".join(one.generate("hello", temperature=0, max_tokens=4))
        told = json.loads(run(capsys, "top", "--once", "--interval", "0.2", "--json").out)
        text = run(capsys, "top", "--once", "--interval", "0.2").out
    assert len(told["engines"]) == 2
    first = told["engines"][0]
    assert first["totals"]["n_generated"] == 4
    assert first["resident_bytes"] > 1 << 20
    assert told["machine"]["memory_bytes"]["available"] > 0
    assert "rss" not in told["machine"]["memory_bytes"]
    head, *rows = text.splitlines()[1:]
    assert head.split() == [
        "PID", "MODEL", "STATE", "TOK/S", "HITS", "READ", "STALL", "CACHE", "MEMORY", "TOKENS",
    ]  # fmt: skip
    assert len(rows) == 2
    assert rows[0].split()[:3] == [str(os.getpid()), "tiny.gguf", "idle"]
    assert rows[0].split()[-1] == "4"


def test_a_name_cannot_drive_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Status(folder)
    made.on_load({"model": "/m/\x1b[2Jx.gguf"})
    out = run(capsys, "top", "--once", "--interval", "0.2").out
    made.on_close()
    assert "\x1b" not in out
    assert "\\x1b[2Jx.gguf" in out


def test_it_goes_on_until_ctrl_c(model: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        with (
            start("chat", "-m", model, state=tmp_path) as chat,
            start("top", "--json", "--interval", "0.2", state=tmp_path) as top,
        ):
            chat.type("hello\n")
            chat.wait_for(" tokens, ")
            enough = len(top.out)
            top.wait_for_output(enough + 6000)
            top.process.send_signal(signal.SIGINT)
            outcome = top.end()
            chat.type("/exit\n")
            assert chat.end().code == 0
    finally:
        del os.environ["XDG_RUNTIME_DIR"]
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    looks: list[dict[str, Any]] = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(looks) >= 2
    mine = [
        engine
        for engine in looks[-1]["engines"]
        if engine["pid"] == chat.process.pid and engine["model"] == str(model)
    ]
    assert len(mine) == 1
    assert mine[0]["totals"]["answers"] == 1
    assert list((runtime / "remoe-edge").iterdir()) == []


def test_the_lock_is_the_engines(folder: Path) -> None:
    made = Status(folder)
    with made.path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    made.on_close()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_on_a_terminal_it_shows_and_leaves(model: Path, tmp_path: Path, term: str) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "TERM": term, "COLUMNS": "160"}
    with Engine(model, publish=runtime / "remoe-edge"):
        process = subprocess.Popen(
            [sys.executable, "-m", "remoe_edge.cli", "top", "--interval", "0.2"],
            stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while shown.count(b"tiny.gguf") < 2:  # drawn at least twice
                shown += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # Linux ends a terminal with an error
                while piece := os.read(ours, 4096):
                    shown += piece
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            os.close(ours)
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert (b"\x1b[" in shown) == (term != "dumb")
