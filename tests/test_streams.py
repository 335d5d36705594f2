"""Streams that are closed, and files that have no end: a line, and never all the memory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_moe
from remoe_edge.bench import record
from remoe_edge.cli import serve, terminal
from remoe_edge.errors import InputError
from remoe_edge.files import reading
from remoe_edge.files.prompts import read_prompts
from remoe_edge.serve import listen
from remoe_edge.serve.settings import ServeSettings

ENDLESS = Path("/dev/zero")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("m") / "m.gguf", "qwen3moe", "Q8_0")


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "words"),
    [
        ("<&-", "-p hi -n 2", 0, ""),
        ("<&-", "-p -", 1, "the prompt is empty"),
        ("<&-", "", 0, ""),
        (">&-", "-p hi -n 2", 1, "Error: Bad file descriptor"),
        ("2>&-", "-p hi -n 2", 0, ""),
        ("<&- >&- 2>&-", "-p hi -n 2", 1, ""),
        (">/dev/full", "-p hi -n 2", 1, "Error: No space left on device"),
    ],
)
def test_a_process_without_its_streams(
    model: Path, closed: str, arguments: str, code: int, words: str
) -> None:
    command = (
        f'exec "$0" -m remoe_edge.cli chat -m "$1" --raw --ctx 64 --temp 0 {arguments} {closed}'
    )
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(model)],
        capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    said = done.stderr.decode(errors="replace")
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert words in said


def test_no_file_takes_the_number_of_a_closed_stream(model: Path, tmp_path: Path) -> None:
    """What llama.cpp prints would go into it."""
    trace, prompts = tmp_path / "t.trace", tmp_path / "p.txt"
    prompts.write_text("one two three")
    command = (
        'exec "$0" -m remoe_edge.cli trace -m "$1" --prompts "$2" -o "$3" --raw -n 2 --ctx 64 --verbose '
        "<&- >&- 2>&-"
    )
    subprocess.run(["sh", "-c", command, sys.executable, model, prompts, trace], timeout=120)
    assert trace.read_bytes()[:5] == b"REMOE"


@pytest.mark.parametrize(
    "read",
    [
        lambda: read_prompts(ENDLESS),
        lambda: record.read(ENDLESS),
        lambda: serve._key(None, ENDLESS),
        lambda: reading.read_whole(ENDLESS, "text"),
        lambda: listen._tls(ServeSettings(certificate=ENDLESS, private_key=ENDLESS)),
    ],
)
def test_a_device_without_an_end(
    read: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 4096)
    with pytest.raises(InputError, match="/dev/zero"):
        read()


def test_a_stdin_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "MOST_BYTES", 4096)
    for read in (terminal.stdin_text, terminal.stdin_line):
        monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 4097))
        with pytest.raises(InputError, match="no end"):
            read()
        monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 4096))
        assert read() == "x" * 4096
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\nlast"))
    assert [terminal.stdin_line() for _ in range(3)] == ["one", "", "last"]
    with pytest.raises(EOFError):
        terminal.stdin_line()


def test_a_pipe_is_read_to_its_end() -> None:
    end, begin = os.pipe()
    os.write(begin, b"one\n---\ntwo")
    os.close(begin)
    try:
        assert read_prompts(f"/dev/fd/{end}") == ["one", "two"]
    finally:
        os.close(end)


def test_json_nested_deeper_than_the_stack(tmp_path: Path) -> None:
    deep = "[" * 200_000
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n" + deep)
    with pytest.raises(InputError, match="line 2"):
        read_prompts(tmp_path / "p.jsonl")
    (tmp_path / "r.json").write_text(deep)
    with pytest.raises(InputError, match="no record"):
        record.read(tmp_path / "r.json")
