"""Connections with keys: encrypted, both sides proven; whoever is not is refused, and told why."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny_moe
from remoe_edge import Engine, InputError, RemoeError, UnsupportedError
from remoe_edge.cli import cli
from remoe_edge.native import _core
from remoe_edge.remote.keys import make_keys
from remotes import Line, check, engine, expected, remote, worker
from waiting import wait_until


def _missing() -> str | None:
    try:
        _core.tls_library()
    except UnsupportedError as error:
        return str(error)
    return None if shutil.which("openssl") else "the program openssl is not installed"


pytestmark = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "model.gguf", "qwen3moe", "Q4_K")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Path:
    make_keys(folder / "keys")
    return folder / "keys"


def refused(model: Path, worker_keys: Path | None, engine_keys: Path | None) -> str:
    """Let an engine meet a worker, check that it answers alone, and return why."""
    with (
        worker(model, keys=worker_keys) as serving,
        engine(model, serving.address, peer_keys=engine_keys) as made,
    ):
        check(made, expected(model, 7), 7)
        assert remote(made)["remote_asked"] == 0
        (peer,) = remote(made)["peers"]
        assert peer["state"] in ("refused", "connecting"), peer
        assert any(peer["address"] in note for note in made.notes)
        return str(peer["why"]) + " " + " ".join(serving.take_lines())


def test_rows_and_weights_come_encrypted(model: Path, keys: Path) -> None:
    said: list[bytes] = []
    with worker(model, listen="0.0.0.0:0", keys=keys / "worker.pem") as serving:
        port = serving.address.rpartition(":")[2]
        with engine(model, f"127.0.0.1:{port}", peer_keys=keys / "client.pem") as made:
            for length in (1, 7):
                check(made, expected(model, length), length)
            assert remote(made)["remote_rows"] > 0, made.notes
        with Line(f"127.0.0.1:{port}") as line:
            line.raw = said.append
            with engine(model, line.address, peer_keys=keys / "client.pem") as made:
                check(made, expected(model, 7), 7)
                assert remote(made)["remote_rows"] > 0, made.notes
    wire = b"".join(said)
    assert b"RMXF" not in wire  # how every frame begins
    assert b"qwen3moe" not in wire
    assert len(wire) > 1000


def test_a_name_is_looked_up(model: Path, keys: Path) -> None:
    with worker(model, keys=keys / "worker.pem") as serving:
        port = serving.address.rpartition(":")[2]
        with engine(model, f"localhost.:{port}", peer_keys=keys / "client.pem") as made:
            check(made, expected(model, 1), 1)
            assert remote(made)["remote_rows"] > 0 or "no host" in str(remote(made)["peers"])
    with engine(model, "no-such-host.invalid:1", peer_keys=keys / "client.pem") as made:
        check(made, expected(model, 1), 1)
        assert any("no host" in note for note in made.notes)


@pytest.mark.parametrize("whose", ["worker", "client"])
def test_an_expired_certificate(model: Path, keys: Path, folder: Path, whose: str) -> None:
    old = folder / f"old-{whose}"
    shutil.copytree(keys, old)
    make_keys(old, days=0)
    pair = {name: keys / f"{name}.pem" for name in ("worker", "client")}
    pair[whose] = old / f"{whose}.pem"
    why = refused(model, pair["worker"], pair["client"])
    assert "expired" in why
    assert ("its certificate is refused" if whose == "worker" else "refuses our certificate") in why


@pytest.mark.parametrize("whose", ["worker", "client"])
def test_a_foreign_certificate(model: Path, keys: Path, folder: Path, whose: str) -> None:
    foreign = folder / f"foreign-{whose}"
    make_keys(foreign)
    pair = {name: keys / f"{name}.pem" for name in ("worker", "client")}
    pair[whose] = foreign / f"{whose}.pem"
    why = refused(model, pair["worker"], pair["client"])
    assert "certificate" in why
    assert "refused" in why or "refuses" in why


def test_a_certificate_of_the_other_side(model: Path, keys: Path) -> None:
    assert "purpose" in refused(model, keys / "client.pem", keys / "client.pem")
    assert "certificate" in refused(model, keys / "worker.pem", keys / "worker.pem")


def test_keys_on_one_side_alone(model: Path, keys: Path) -> None:
    assert "keys" in refused(model, None, keys / "client.pem")
    refused(model, keys / "worker.pem", None)


def test_strangers_leave_room_for_engines(model: Path, keys: Path) -> None:
    with worker(model, keys=keys / "worker.pem") as serving:
        host, _, port = serving.address.rpartition(":")
        strangers = [socket.create_connection((host, int(port))) for _ in range(300)]
        try:
            with engine(model, serving.address, peer_keys=keys / "client.pem") as made:
                check(made, expected(model, 7), 7)
                assert remote(made)["remote_rows"] > 0, made.notes
        finally:
            for stranger in strangers:
                stranger.close()
        wait_until(lambda: serving.counts()["clients"] == 0)


def test_files_that_are_no_keys(model: Path, keys: Path, folder: Path) -> None:
    for name, text in (
        ("empty", ""),
        ("noise", "noise"),
        ("half", (keys / "client.pem").read_text().split("-----BEGIN CERT")[0]),
    ):
        path = folder / f"{name}.pem"
        path.write_text(text)
        with pytest.raises(InputError, match="remoe-edge keys"):
            worker(model, keys=path)
        with pytest.raises(InputError, match="remoe-edge keys"):
            Engine(model, peers=["127.0.0.1:1"], peer_keys=path)
    with pytest.raises(InputError):
        worker(model, keys=folder / "nowhere.pem")


def test_keys_that_would_be_read_for_ever_or_asked_for(
    model: Path, keys: Path, tmp_path: Path
) -> None:
    """A pipe, a device, a folder, a file without end, and a key that OpenSSL asks the terminal about."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"")
    os.truncate(tmp_path / "long", 1 << 40)
    key = (keys / "worker.pem").read_text()
    locked = tmp_path / "locked"
    locked.write_text(key.replace("BEGIN PRIVATE KEY", "BEGIN ENCRYPTED PRIVATE KEY"))
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "long", locked):
        with pytest.raises(InputError):
            worker(model, keys=path)
        with pytest.raises(InputError):
            Engine(model, peers=["127.0.0.1:1"], peer_keys=path)
    (tmp_path / "made").mkdir()
    os.mkfifo(tmp_path / "made" / "authority.key")
    with pytest.raises(InputError):
        make_keys(tmp_path / "made")
    with pytest.raises(RemoeError, match="cannot write"):
        make_keys(locked)


def test_a_model_and_keys_whose_names_are_no_utf8(model: Path, keys: Path, tmp_path: Path) -> None:
    odd = {
        name: Path(os.fsdecode(os.fsencode(tmp_path / name) + b"\xff")) for name in ("m", "w", "c")
    }
    for name, source in (("m", model), ("w", keys / "worker.pem"), ("c", keys / "client.pem")):
        shutil.copy(source, odd[name])
    with (
        worker(odd["m"], keys=odd["w"]) as serving,
        engine(odd["m"], serving.address, peer_keys=odd["c"]) as made,
    ):
        check(made, expected(model, 1), 1)
        assert remote(made)["remote_rows"] > 0, made.notes


def test_the_command(folder: Path) -> None:
    target = folder / "by-command"
    done = CliRunner().invoke(cli, ["keys", str(target)])
    assert done.exit_code == 0, done.output
    for name in ("authority.key", "worker.pem", "client.pem"):
        assert str(target / name) in done.stdout
        assert stat.S_IMODE((target / name).stat().st_mode) == 0o600
    before = {each.name: each.read_bytes() for each in target.iterdir()}
    assert CliRunner().invoke(cli, ["keys", str(target), "--days", "1"]).exit_code == 0
    after = {each.name: each.read_bytes() for each in target.iterdir()}
    assert after["authority.key"] == before["authority.key"]
    assert after["worker.pem"] != before["worker.pem"]
