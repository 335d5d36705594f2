"""Reads of expert bytes, seen from Python, and the probe of the storage behind them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from remoe_edge.cli import cli
from remoe_edge.errors import InputError, ReadError, RemoeError, UnsupportedError
from remoe_edge.machine import storage
from remoe_edge.native import _core

N_BYTES = 3 * 2**20 + 777


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(N_BYTES)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> str:
    file = tmp_path / "experts.gguf"
    file.write_bytes(content)
    return str(file)


@pytest.fixture(params=["pread", "io_uring"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    empty = tmp_path / "empty"
    empty.touch()
    try:
        _core.Reader([str(empty)], backend=request.param).close()
    except UnsupportedError as error:
        pytest.skip(str(error))
    return str(request.param)


SPANS = [(0, 0, 1), (0, 4095, 2), (0, 12345, 2**20 + 1), (0, N_BYTES - 5000, 5000), (0, 0, N_BYTES)]


@pytest.mark.parametrize("direct", [True, False])
def test_reads_are_the_files_bytes(path: str, content: bytes, backend: str, direct: bool) -> None:
    reader = _core.Reader([path], backend=backend, direct=direct)
    first = reader.submit(SPANS)
    answers = reader.drain()
    assert [answers[first + i] for i in range(len(SPANS))] == [
        content[offset : offset + n_bytes] for _, offset, n_bytes in SPANS
    ]
    counts = reader.counts()
    assert counts["reads"] == len(SPANS)
    assert counts["bytes"] == sum(n_bytes for _, _, n_bytes in SPANS)
    assert counts["errors"] == 0
    assert reader.backend == backend
    assert direct or not reader.direct


def test_faults_below_the_retry_logic_are_finished(path: str, content: bytes, backend: str) -> None:
    faults = _core.FaultPlan(short_bytes=10000, interruptions=2)
    reader = _core.Reader([path], backend=backend, piece_bytes=65536, faults=faults)
    tag = reader.submit([(0, 777, 200_000)])
    assert reader.drain() == {tag: content[777:200_777]}
    assert reader.counts()["operations"] > 40


def test_a_bad_range_fails_by_name_and_heals(path: str, content: bytes, backend: str) -> None:
    reader = _core.Reader([path], backend=backend)
    reader.set_faults(_core.FaultPlan(range_file=0, range_offset=500_000, range_bytes=1))
    bad = reader.submit([(0, 499_712, 8192), (0, 0, 4096)])
    answers = reader.drain()
    failure = answers[bad]
    assert isinstance(failure, str)
    assert path in failure
    assert "offset 499712" in failure
    assert answers[bad + 1] == content[:4096]
    reader.set_faults(_core.FaultPlan())
    tag = reader.submit([(0, 499_712, 8192)])
    assert reader.drain() == {tag: content[499_712 : 499_712 + 8192]}


def test_a_changed_file_is_named(path: str, backend: str) -> None:
    reader = _core.Reader([path], backend=backend)
    reader.check_unchanged()
    with open(path, "r+b") as file:
        file.truncate(4096)
    with pytest.raises(ReadError, match="truncated"):
        reader.check_unchanged()
    tag = reader.submit([(0, 8192, 4096)])
    failure = reader.drain()[tag]
    assert isinstance(failure, str)
    assert f"{path} was truncated" in failure


def test_background_reads_end_once_each(path: str, content: bytes, backend: str) -> None:
    reader = _core.Reader([path], backend=backend, depth=1)
    spans = [(0, i * 16384, 10000) for i in range(100)]
    first = reader.submit(spans, background=True)
    reader.promote(first + 99)
    cancelled = reader.cancel_background()
    answers = reader.drain()
    assert sorted(answers) == list(range(first, first + 100))
    failed = [tag for tag, answer in answers.items() if isinstance(answer, str)]
    assert len(failed) == cancelled == reader.counts()["cancelled"]
    assert first + 99 not in failed
    for tag, answer in answers.items():
        offset = spans[tag - first][1]
        assert tag in failed or answer == content[offset : offset + 10000]


def test_what_is_lost_is_noted_and_named(path: str) -> None:
    faults = _core.FaultPlan(refuse_direct=True, refuse_uring=True)
    reader = _core.Reader([path], faults=faults)
    assert (reader.backend, reader.direct) == ("pread", False)
    (note,) = reader.notes  # lanes instead of a ring lose nothing
    assert "O_DIRECT refused by " + path in note
    with pytest.raises(UnsupportedError, match="io_uring refused"):
        _core.Reader([path], backend="io_uring", faults=faults)


def test_a_closed_reader_says_so(path: str) -> None:
    reader = _core.Reader([path])
    reader.submit([(0, 0, 1000)])
    reader.close()
    reader.close()
    with pytest.raises(InputError, match="closed"):
        reader.drain()


def test_the_probe_measures_and_picks_one_of_its_points(path: str) -> None:
    result = storage.probe(path, 0.2)
    assert result.pick in result.points
    assert result.pick.block_bytes == 2**20
    assert all(point.n_reads >= point.depth for point in result.points)
    assert all(point.block_bytes <= N_BYTES for point in result.points)


def test_the_probe_prints_its_curve(path: str) -> None:
    done = CliRunner().invoke(cli, ["probe", path, "--seconds", "0.2"])
    assert done.exit_code == 0
    assert "\n  block " in done.stdout
    assert "\n  1024 KiB " in done.stdout
    assert " depth 1 " in done.stdout
    assert "reads in flight" in done.stdout


def test_the_probe_prints_json(path: str) -> None:
    done = CliRunner().invoke(cli, ["probe", path, "--seconds", "0.2", "--no-direct", "--json"])
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert answer["direct"] is False
    assert answer["pick"] in answer["points"]


@pytest.mark.parametrize("kind", ["missing", "tiny", "folder"])
def test_what_cannot_be_probed_is_one_line(tmp_path: Path, kind: str) -> None:
    target = tmp_path / kind
    if kind == "tiny":
        target.write_bytes(b"x" * 65535)
    elif kind == "folder":
        target.mkdir()
    with pytest.raises(RemoeError, match=kind):
        storage.probe(target)
    done = CliRunner().invoke(cli, ["probe", str(target)])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
