"""Readers where the system gives less than they ask for: fewer lanes, another backend or an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny_moe

N_BYTES = 1 << 20
_BEGIN = """
import errno, sys
sys.path.insert(0, {folder!r})
import storage_limits as limits
from remoe_edge.errors import RemoeError, UnsupportedError
from remoe_edge.native import _core
path = {path!r}
content = open(path, "rb").read()
SPANS = [(0, at * 16384, 10000) for at in range(40)]

def check(reader):
    "Reads are right."
    first = reader.submit(SPANS)
    answers = reader.drain()
    assert [answers[first + i] for i in range(len(SPANS))] == [
        content[offset : offset + n_bytes] for _, offset, n_bytes in SPANS
    ]

def forbid(*calls, **settings):
    if not limits.forbid(*calls, **settings):
        sys.exit("SKIP system calls cannot be filtered here")

def need_io_uring():
    try:
        _core.Reader([path], backend="io_uring").close()
    except UnsupportedError as error:
        sys.exit(f"SKIP {{error}}")
"""


def _run(path: Path, script: str) -> None:
    begin = _BEGIN.format(folder=str(Path(__file__).parent), path=str(path))
    done = subprocess.run(
        [sys.executable, "-c", begin + script], capture_output=True, text=True, timeout=600
    )
    last = done.stderr.strip().rpartition("\n")[2]
    if last.startswith("SKIP "):
        pytest.skip(last.removeprefix("SKIP "))
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "experts.gguf"
    file.write_bytes(bytes(range(251)) * (N_BYTES // 251))
    return file


@pytest.mark.parametrize("error_name", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("call", ["IO_URING_SETUP", "IO_URING_ENTER"])
def test_a_ring_that_is_forbidden_is_replaced_by_lanes(
    path: Path, call: str, error_name: str
) -> None:
    _run(
        path,
        f"""
forbid(limits.{call}, error_number=errno.{error_name})
before = limits.open_descriptors()
for _ in range(3):
    reader = _core.Reader([path])
    assert (reader.backend, reader.notes) == ("pread", []), (reader.backend, reader.notes)
    check(reader)
    reader.close()
    try:
        _core.Reader([path], backend="io_uring")
    except UnsupportedError as error:
        assert str(error).startswith("io_uring "), error
    else:
        raise AssertionError("a ring that cannot be used was given out")
assert limits.open_descriptors() == before
""",
    )


def test_files_that_the_ring_may_not_register_are_read_by_descriptor(path: Path) -> None:
    _run(
        path,
        """
need_io_uring()
forbid(limits.IO_URING_REGISTER)
reader = _core.Reader([path])
assert (reader.backend, reader.notes) == ("io_uring", [])
check(reader)
""",
    )


@pytest.mark.parametrize("error_name", ["EPERM", "EBADF"])
def test_a_ring_that_is_forbidden_later_fails_its_reads(path: Path, error_name: str) -> None:
    _run(
        path,
        f"""
need_io_uring()
reader = _core.Reader([path], backend="io_uring")
check(reader)
forbid(limits.IO_URING_ENTER, error_number=errno.{error_name})
for background in (False, True):
    reader.submit(SPANS, background=background)
    failures = list(reader.drain().values())
    assert len(failures) == len(SPANS)
    assert all(isinstance(each, str) and "io_uring takes no requests" in each for each in failures)
reader.close()
""",
    )


def test_fewer_threads_than_asked_for_are_fewer_lanes(path: Path) -> None:
    _run(
        path,
        """
depths = []
for mebibytes in (4, 40, 80, 160, 320):
    limits.leave_address_space(mebibytes << 20)
    try:
        reader = _core.Reader([path], backend="pread", depth=200)
    except (RemoeError, MemoryError) as error:
        assert "thread" in str(error) or "memory" in str(error), error
        continue
    depths.append(reader.depth)
    assert 1 <= reader.depth < 200
    (note,) = reader.notes
    assert "threads instead of 202: cannot start a thread" in note, note
    check(reader)
    reader.submit(SPANS, background=True)
    assert len(reader.drain()) == len(SPANS)
    reader.close()
assert len(depths) >= 2
assert depths == sorted(depths)
""",
    )


def test_no_thread_at_all_is_an_error_and_leaves_nothing_open(path: Path) -> None:
    _run(
        path,
        """
before = limits.open_descriptors()
if not limits.no_more_threads():
    sys.exit("SKIP threads cannot be refused here")
for backend in ("auto", "pread", "io_uring"):
    for _ in range(3):
        try:
            _core.Reader([path], backend=backend)
        except RemoeError as error:
            refused = "io_uring refused" in str(error) and backend == "io_uring"
            assert refused or "cannot start a thread that reads" in str(error), error
        else:
            raise AssertionError("a reader without a thread")
assert limits.open_descriptors() == before
""",
    )


@pytest.mark.parametrize("backend", ["auto", "pread", "io_uring"])
def test_few_open_files_are_an_error_or_another_backend(path: Path, backend: str) -> None:
    _run(
        path,
        f"""
before, opened = limits.open_descriptors(), 0
for left in range(1, 8):
    limits.leave_descriptors(left)
    try:
        reader = _core.Reader([path], backend={backend!r})
    except RemoeError as error:
        assert "open files" in str(error) or "io_uring" in str(error), error
    else:
        opened += 1
        check(reader)
        reader.close()
    assert limits.open_descriptors() == before, left
assert opened > 0 or {backend!r} == "io_uring"
""",
    )


def test_an_engine_without_a_thread_is_an_error(tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    _run(
        model,
        """
from remoe_edge import Engine
if not limits.no_more_threads():
    sys.exit("SKIP threads cannot be refused here")
for backend in ("auto", "pread"):
    try:
        Engine(path, cache="50%", n_ctx=64, threads=1, io_backend=backend, publish=False)
    except RemoeError as error:
        assert "cannot start a thread that reads" in str(error), error
    else:
        raise AssertionError("an engine without a thread")
""",
    )
