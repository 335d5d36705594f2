"""A machine without a copy of the experts: the same bits with peers, and a clear error without."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny_moe
from remoe_edge import Engine, InputError, RemoeError
from remoe_edge.cli import cli
from remoe_edge.convert.dense import KEY, write_dense
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.native import _core
from remotes import check, engine, expected, prompt, remote, worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dense")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "model.gguf", "qwen3moe", "Q4_K", n_embd=256, n_ff_exp=256)


@pytest.fixture(scope="module")
def dense(folder: Path, model: Path) -> Path:
    path = folder / "dense.gguf"
    done = CliRunner().invoke(cli, ["convert", "dense", str(model), "-o", str(path)])
    assert done.exit_code == 0, done.output
    return path


def test_what_is_in_the_file(model: Path, dense: Path) -> None:
    whole, made = _core.ModelFile.open(str(model)), _core.ModelFile.open(str(dense))
    assert whole.has_experts
    assert not made.has_experts
    assert fingerprint(whole) == fingerprint(made)
    sums = made.unsigned_array(KEY)
    assert sums is not None
    assert len(sums) == sum(layer.n_experts * len(layer.matrices) for layer in whole.expert_layers)
    with model.open("rb") as old, dense.open("rb") as new:
        for a, b in zip(whole.tensors, made.tensors, strict=True):
            if "_exps.weight" in a.name:
                continue
            old.seek(a.offset)
            new.seek(b.offset)
            assert old.read(a.n_bytes) == new.read(b.n_bytes), a.name
    assert dense.stat().st_blocks * 512 < dense.stat().st_size


@pytest.mark.parametrize("shares", [("all",), ("*:0-3", "*:4-7")], ids=str)
def test_lossless_with_peers_alone(model: Path, dense: Path, shares: tuple[str, ...]) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(model, share)) for share in shares]
        made = stack.enter_context(engine(dense, *(each.address for each in workers)))
        assert any("no copy of the experts" in note for note in made.notes)
        for length in (1, 7, 60):
            check(made, expected(model, length), length)
        counts = remote(made)
        assert counts["remote_rows"] > 0
        assert counts["remote_fetches"] > 0
        assert counts["remote_hedges"] == counts["remote_mismatches"] == 0


def test_an_expert_that_no_peer_serves(model: Path, dense: Path) -> None:
    with worker(model, "*:0-6") as serving, engine(dense, serving.address) as made:
        assert any("experts are with no peer" in note for note in made.notes)
        with pytest.raises(RemoeError, match="no peer sends") as raised:
            made.evaluate(prompt(200))
        assert "expert 7" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_peers_that_go(model: Path, dense: Path) -> None:
    with worker(model) as serving, engine(dense, serving.address) as made:
        check(made, expected(model, 7), 7)
        serving.stop()
        serving.wait()
        with pytest.raises(RemoeError):
            for _ in range(50):
                made.evaluate(prompt(60))
        port = serving.address.rpartition(":")[2]
        # It comes again, and the engine goes on.
        with worker(model, listen=f"127.0.0.1:{port}"):
            for _ in range(2000):
                with contextlib.suppress(RemoeError):
                    check(made, expected(model, 7), 7)
                    break
            check(made, expected(model, 7), 7)


def test_without_peers_it_is_refused(model: Path, dense: Path) -> None:
    for settings in ({}, {"peers": ["127.0.0.1:1"], "stream": False}):
        with pytest.raises(InputError, match="holds no experts"):
            Engine(dense, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no peer serves any"):
        Engine(dense, peers=["127.0.0.1:1"])
    with pytest.raises(InputError, match="holds no experts"):
        worker(dense)
    said = CliRunner().invoke(cli, ["chat", str(dense), "-p", "x"])
    assert said.exit_code == 1
    assert "--peers" in said.output


def test_other_weights_are_refused_by_the_sums(model: Path, dense: Path, folder: Path) -> None:
    other = folder / "flipped.gguf"
    shutil.copy(model, other)
    matrix = _core.ModelFile.open(str(model)).expert_layers[0].matrices[1]
    with other.open("r+b") as file:
        file.seek(matrix.offset + matrix.expert_bytes * 2 + matrix.expert_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with worker(other) as serving, pytest.raises(InputError, match="layer 0, expert 2 are not"):
        Engine(dense, peers=[serving.address], n_ctx=64)


def test_what_cannot_be_left_out(model: Path, dense: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="already"):
        write_dense(dense, folder / "again.gguf")
    with pytest.raises(InputError, match="is the input"):
        write_dense(model, model)
    split = tiny_moe.make(folder / "split.gguf", "qwen3moe", "Q4_K", n_split=2)
    with pytest.raises(InputError, match="2 files"):
        write_dense(split, folder / "again.gguf")


def test_sums_that_do_not_fit(dense: Path, folder: Path) -> None:
    damaged = folder / "damaged.gguf"
    shutil.copy(dense, damaged)
    data = bytearray(damaged.read_bytes()[: 1 << 20])
    at = data.index(KEY.encode()) + len(KEY) + 4
    data[at : at + 4] = (4).to_bytes(4, "little")  # 32-bit numbers: half of the bytes are left
    with damaged.open("r+b") as file:
        file.write(data)
    with pytest.raises(RemoeError):
        _core.ModelFile.open(str(damaged))
