"""Boxes: cgroups where this machine lets us, stand-ins of what it is not, and the disk's settings.

Version 1 or 2 of cgroups is run for real where it is what the machine has; the other one, and
systemd's scopes, against a tree of files and a program that stand in for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remoe_edge.bench import box
from remoe_edge.bench.box import Box, Cgroup, Limits, NoBoxError, boxed
from remoe_edge.bench.host_memory import bring_back
from remoe_edge.machine import disk, memory
from remoe_edge.machine.disk import Disk
from remoe_edge.machine.memory import Memory
from remoe_edge.units import MIB

SDA = Disk("sda", "8:0", Path("/sys/block/sda"))

FILL = """
import sys
data = bytearray(int(sys.argv[1]))
data[::4096] = bytes([1]) * len(data[::4096])
print(len(data))
"""


def fill(held: Box, n_bytes: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        held.command([sys.executable, "-c", FILL, str(n_bytes)]), capture_output=True, text=True
    )


@pytest.fixture
def cgroup() -> None:
    try:
        with boxed(Limits(64 * MIB)) as held:
            if isinstance(held, Cgroup):
                return
    except NoBoxError as error:
        pytest.skip(str(error))
    pytest.skip("cgroups only through systemd here")


def folders() -> list[Path]:
    return [*box.CGROUPS.glob(f"*/{box.PREFIX}-*"), *box.CGROUPS.glob(f"{box.PREFIX}-*")]


def test_the_limit_holds_and_the_kernel_keeps_the_account(cgroup: None) -> None:
    with boxed(Limits(96 * MIB)) as held:
        assert isinstance(held, Cgroup)
        assert held.folder in folders()
        done = fill(held, 48 * MIB)
        assert done.stdout == f"{48 * MIB}\n", done.stderr
        account = held.account()
        assert account.peak_bytes is not None
        assert 48 * MIB < account.peak_bytes <= 96 * MIB
        assert account.oom_kills == 0
        assert fill(held, 200 * MIB).returncode == -9
        assert held.oom_kills() == 1
    assert held.folder not in folders()


def test_what_is_left_inside_is_ended(cgroup: None) -> None:
    with boxed(Limits(96 * MIB)) as held:
        sleeper = subprocess.Popen(held.command(["sleep", "1000"]))
        assert isinstance(held, Cgroup)
        while str(sleeper.pid) not in (held.folder / "cgroup.procs").read_text().split():
            time.sleep(0.01)
    assert sleeper.wait(600) == -9
    assert held.folder not in folders()


def test_groups_of_the_dead_are_swept(cgroup: None) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    with boxed(Limits(96 * MIB)) as held:
        assert isinstance(held, Cgroup)
        dead = held.folder.with_name(f"{box.PREFIX}-{int(done.stdout)}-0")
        dead.mkdir()
        box.sweep()
        assert not dead.exists()
        assert held.folder.exists()


def test_without_limits_the_account_is_kept_all_the_same() -> None:
    with boxed(Limits()) as held:
        done = subprocess.Popen(held.command(["sleep", "1000"]))
        try:
            time.sleep(0.2)
            peak = held.account(done.pid).peak_bytes
            assert peak is not None
            assert 0 < peak < 64 * MIB
        finally:
            done.kill()
            done.wait()


# --- stand-ins ---


def version_2(root: Path, controllers: str = "cpu io memory pids") -> Path:
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text("cpu")
    return root


def test_version_2_writes_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, str] = {}
    create = Path.mkdir

    def mkdir(path: Path) -> None:
        create(path)
        (path / "memory.swap.max").write_text("max")
        (path / "memory.peak").write_text("1234\n")
        (path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n")

    def rmdir(path: Path) -> None:
        for file in sorted(path.iterdir()):
            made[file.name] = file.read_text()
            file.unlink()
        os.rmdir(path)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    with boxed(Limits(100 * MIB, 600 * MIB), SDA, root=version_2(tmp_path)) as held:
        assert held.how == "cgroup v2"
        assert isinstance(held, Cgroup)
        assert held.folder.parent == tmp_path
        assert held.account() == box.Account(1234, "cgroup v2", 2)
        command = held.command(["echo", "a b"])
        assert command[-3:] == ["--", "echo", "a b"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "a b\n"
    assert made["memory.max"] == str(100 * MIB)
    assert made["memory.swap.max"] == "0"
    assert made["io.max"] == f"8:0 rbps={600 * MIB}"
    assert made["cgroup.procs"].strip().isdigit()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+io"  # written after +memory
    assert not list(tmp_path.glob(f"{box.PREFIX}-*"))


def test_version_1_caps_reads_in_a_group_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "blkio").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("0")
    held = Cgroup(Limits(100 * MIB, 5000), SDA, tmp_path)
    (cap,) = tmp_path.glob(f"blkio/{box.PREFIX}-*/blkio.throttle.read_bps_device")
    assert cap.read_text() == "8:0 5000"
    assert held.folder.parent == tmp_path / "memory"
    procs = [word for word in held.command(["true"]) if word.endswith("cgroup.procs")]
    assert [Path(word).parent.parent.name for word in procs] == ["memory", "blkio"]


SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemd-run that takes everything, writes down what it was told, and limits nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log"
    program = folder / "systemd-run"
    program.write_text(SYSTEMD_RUN.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def test_without_cgroups_systemd_is_asked(systemd: Path, tmp_path: Path) -> None:
    with boxed(Limits(100 * MIB, 5000), SDA, root=tmp_path / "none") as held:
        assert held.how == "systemd-run --user"
        done = subprocess.run(held.command(["echo", "hello"]), capture_output=True, text=True)
        assert done.stdout == "hello\n"
    said = systemd.read_text().splitlines()[-1]
    assert said.startswith("--user --scope --quiet --collect")
    assert f"-p MemoryMax={100 * MIB}" in said
    assert "-p MemorySwapMax=0" in said
    assert "-p IOReadBandwidthMax=/dev/sda 5000" in said


def test_a_limit_that_systemd_does_not_keep_is_an_error(systemd: Path, tmp_path: Path) -> None:
    with boxed(Limits(100 * MIB), root=tmp_path / "none") as held:
        process = subprocess.Popen(held.command(["sleep", "1000"]))
        try:
            with pytest.raises(NoBoxError, match="took the limit of 100 MiB and does not keep it"):
                held.check(process.pid)
        finally:
            process.kill()
            process.wait()


def test_where_neither_works_it_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(NoBoxError) as error,
        boxed(Limits(100 * MIB), root=tmp_path),
    ):
        pass
    said = str(error.value)
    assert "\n" not in said
    assert f"{tmp_path} holds no memory controller" in said
    assert "there is no systemd-run" in said
    assert "run as root" in said
    # Without a limit nothing is missing.
    with boxed(Limits(), root=tmp_path) as held:
        assert held.how == "none"
        assert held.command(["a", "b"]) == ["a", "b"]


def test_a_missing_controller_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(NoBoxError, match="has no io controller"),
        boxed(Limits(100 * MIB, 5000), SDA, root=version_2(tmp_path, "memory")),
    ):
        pass
    assert not list(tmp_path.glob(f"{box.PREFIX}-*"))


def test_a_cap_needs_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(NoBoxError, match="no block device is known"),
        boxed(Limits(None, 5000), None, root=version_2(tmp_path)),
    ):
        pass
    assert not list(tmp_path.glob(f"{box.PREFIX}-*"))


# --- the disk ---


def test_the_disk_of_a_partition(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x")
    device = os.stat(file).st_dev
    if os.major(device) == 0:
        pytest.skip("the file system has no device of its own")
    sysfs = tmp_path / "sys"
    part = sysfs / "devices/pci/nvme0n1/nvme0n1p1"
    part.mkdir(parents=True)
    (part.parent / "queue").mkdir()
    (part.parent / "queue/read_ahead_kb").write_text("4096\n")
    (part.parent / "dev").write_text("259:0\n")
    (sysfs / "dev/block").mkdir(parents=True)
    (sysfs / f"dev/block/{os.major(device)}:{os.minor(device)}").symlink_to(part)
    found = disk.disk_of(file, sysfs=sysfs)
    assert found is not None
    assert (found.name, found.number, found.node) == ("nvme0n1", "259:0", "/dev/nvme0n1")
    with disk.read_ahead(found, 128) as ahead:
        assert (ahead.found_kib, ahead.kib) == (4096, 128)
        assert found.read_ahead_file.read_text() == "128"
    assert found.read_ahead_file.read_text() == "4096"
    with pytest.raises(KeyboardInterrupt), disk.read_ahead(found, 128):
        raise KeyboardInterrupt
    assert found.read_ahead_file.read_text() == "4096"
    with disk.read_ahead(found, None) as ahead:
        assert (ahead.kib, ahead.note) == (4096, "as found")


def test_read_ahead_that_may_not_be_set_is_left_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue").mkdir()
    found = Disk("sda", "8:0", tmp_path)
    found.read_ahead_file.write_text("8192")

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with disk.read_ahead(found, 128) as ahead:
        assert ahead.kib == 8192
        assert "may not be set (Permission denied)" in ahead.note
    with disk.read_ahead(None, 128) as ahead:
        assert ahead.kib is None


def test_the_page_cache_of_a_file_is_given_up_without_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr(disk, "_DROP", tmp_path / "no such folder/drop_caches")
    assert "by fadvise" in disk.drop_page_cache([file])
    assert disk.drop_page_cache([tmp_path / "gone"]) == "not dropped: No such file or directory"


def test_memory_is_touched_up_to_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (8 << 20) + 1
    assert bring_back(asked) == 8 << 20
    for room, touched in ((100 << 20, 0), (516 << 20, 4 << 20), (8 << 30, 8 << 20)):
        found = Memory(room, "a test", None)
        monkeypatch.setattr(memory, "available", lambda found=found: found)
        assert bring_back(asked) == touched
