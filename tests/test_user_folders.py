"""A user without a home, with one that cannot be written, and run folders that are no good.

What would be kept there is not kept: a note at most, and nothing is made in places nobody named.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_moe
from command_line import SECONDS, run
from remoe_edge.cli.prompt import _history_path
from remoe_edge.files.user_folder import home
from remoe_edge.plan.measure import records_folder
from remoe_edge.telemetry import status

GREEDY = ("--temp", "0", "-n", "4")
NOWHERE = "/nonexistent/home"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("homeless") / "tiny.gguf", "qwen3moe", "Q4_0")


@pytest.fixture(autouse=True)
def nothing_is_made_nowhere() -> object:
    assert not Path("/nonexistent").exists()
    yield
    assert not Path("/nonexistent").exists()


def without_entry(look: Callable[[], object]) -> object:
    """Call something in a child whose user no password file knows; only root can become one."""
    if os.getuid() != 0:
        pytest.skip("another user's id takes root")
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(54321)
            os.write(writes, repr(look()).encode())
        except BaseException as error:
            os.write(writes, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writes)
    told = os.read(reads, 4096).decode()
    os.close(reads)
    os.waitpid(pid, 0)
    return told


@pytest.mark.parametrize("value", [None, "", "/", "relative", "/nonexistent", NOWHERE])
def test_no_home(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    if value is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", value)
    for look in (home, _history_path, records_folder):
        assert without_entry(look) == "None"
    if value is not None:
        assert (home(), _history_path(), records_folder()) == (None, None, None)


def test_a_home_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")  # which is to be ignored
    assert _history_path() == tmp_path / ".local" / "state" / "remoe-edge" / "chat_history"
    assert records_folder() == tmp_path / ".cache" / "remoe-edge" / "plan"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert _history_path() == tmp_path / "state" / "remoe-edge" / "chat_history"


# --- a conversation at a terminal, which keeps a history ---


def at_a_terminal(model: Path, lines: bytes, **environment: str) -> tuple[int, str]:
    """Run a chat at a terminal; return its exit status and what was shown."""
    leader, follower = pty.openpty()
    inherited = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_STATE_HOME")}
    process = subprocess.Popen(
        [sys.executable, "-m", "remoe_edge.cli", "chat", str(model), *GREEDY],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        env={**inherited, "TERM": "dumb", **environment},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    end = time.monotonic() + SECONDS
    try:
        while b"> " not in shown:
            assert time.monotonic() < end, shown
            if select.select([leader], [], [], 1)[0]:
                shown += os.read(leader, 65536)
        os.write(leader, lines)
        while process.poll() is None or select.select([leader], [], [], 0)[0]:
            assert time.monotonic() < end, shown
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    shown += os.read(leader, 65536)
                except OSError:  # nobody has the other end any more
                    break
        return process.wait(SECONDS), shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def test_a_conversation_without_a_home(model: Path) -> None:
    code, shown = at_a_terminal(model, b"hello\n/exit\n", HOME=NOWHERE)
    assert code == 0, shown
    assert shown.count("is not kept for the next session: there is no home folder") == 1
    assert "MiB/token" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("name", ["HOME", "XDG_STATE_HOME"])
def test_a_conversation_whose_history_cannot_be_written(
    name: str, model: Path, tmp_path: Path
) -> None:
    # A file in the way stops root too, whom no permission does.
    (tmp_path / ".local").write_text("")
    (tmp_path / "remoe-edge").write_text("")
    code, shown = at_a_terminal(model, b"hello\n/exit\n", **{"HOME": NOWHERE, name: str(tmp_path)})
    assert code == 0, shown
    assert shown.count("the history is not kept: ") == 1
    assert "MiB/token" in shown
    assert "Traceback" not in shown


# --- measurements, which a plan keeps ---


@pytest.mark.parametrize("kind", ["none", "not writable"])
def test_a_plan_without_a_home(
    kind: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".cache").write_text("")
    monkeypatch.setenv("HOME", NOWHERE if kind == "none" else str(tmp_path))
    outcome = run(capsys, "plan", model, "--tpot", "100s", "--ctx", "128", "--json")
    assert outcome.code == 0, outcome
    notes = [each for each in json.loads(outcome.out)["notes"] if "is not kept" in each]
    assert len(notes) == 1
    chosen = run(capsys, "chat", model, "-p", "x", *GREEDY, "--cache", "plan:100s", "--ctx", "128")
    assert chosen.code == 0, chosen
    assert "planned for" in chosen.err


# --- the run folder, in which engines show themselves to `top` ---


def test_the_first_run_folder_that_is_good_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    good = tmp_path / "good"
    good.mkdir(mode=0o700)
    assert status.default_folder(str(good)) == good / "remoe-edge"
    others = status.folders()

    blocked = tmp_path / "blocked"
    blocked.mkdir(mode=0o700)
    (blocked / "remoe-edge").write_text("")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    linked = tmp_path / "linked"
    linked.mkdir(mode=0o700)
    (linked / "remoe-edge").symlink_to(good)
    for bad in (blocked, open_to_all, linked, tmp_path / "none", Path("/nonexistent/run")):
        assert status.default_folder(str(bad)) in others, bad
    if os.getuid() == 0:  # another user's, as sudo leaves it
        good.chmod(0o700)
        os.chown(good, 54321, -1)
        assert status.default_folder(str(good)) in others
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("runtime", ["", "relative", "/nonexistent/run", "file"])
def test_an_engine_runs_whatever_the_run_folder(
    runtime: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if runtime == "file":
        (tmp_path / "file").write_text("")
        runtime = str(tmp_path / "file")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    outcome = run(capsys, "chat", model, "-p", "x", *GREEDY)
    assert outcome.code == 0, outcome
    assert "top" not in outcome.err
    assert run(capsys, "top", "--once", "--interval", "0.2", "--json").code == 0
