"""Figures that come from somewhere fragile: files of the kernel that say nothing, or nonsense.

Every file of every recorded machine is replaced by each of these in turn; every reader then reads. What
cannot be told is left out; a budget is never a negative one, and no figure is NaN.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from recorded.trees import ORIN_NX, ORIN_NX_IN_TROUBLE, X86, change, plant
from remoe_edge.bench import disturbances
from remoe_edge.inspect.doctor import board, sensors
from remoe_edge.machine import (
    block_device,
    cgroups,
    description,
    kernel_files,
    memory,
    power_mode,
    processors,
)
from remoe_edge.machine.memory_sensor import MemorySensor
from remoe_edge.telemetry import Sampler

VERSION_1 = {
    "proc/meminfo": ORIN_NX["proc/meminfo"],
    "proc/self/cgroup": "9:memory:/a/b\n4:cpu,cpuacct:/a\n3:cpuset:/a\n0::/x\n",
    "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{2 << 30}\n",
    "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": f"{1 << 30}\n",
    "sys/fs/cgroup/memory/a/b/memory.stat": "total_inactive_file 4096\ntotal_active_file 4096\n",
    "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpuset/a/cpuset.cpus": "0-3,6\n",
}
TREES = {"jetson": ORIN_NX, "trouble": ORIN_NX_IN_TROUBLE, "x86": X86, "cgroup v1": VERSION_1}
NONSENSE = (
    "", "\n", " ", "\0", "abc", "-1", "--5", "0", "nan", "inf", "1e400", "18446744073709551616", "\u00b2",
    "\u0661", "1,5", "1.5", ":", "::", "a:b", "1 2 3", "max", "max max", "-1 0", "0 0", "unknown\n" * 3,
    "some avg10=x total=\n", "cpu\n", "cpu a b c d e f g h\n", "x" * 10_000, "0-", "-3", "3-0",
    "0-99999999", "MemAvailable: kB\n",
    "MemAvailable:    -5 kB\n", "1 2 nvme0n1\n", "179:x\n", "1 0 0:0 / / rw\n",
    "9" * 5000, "9" * 400, "0-x", "0-3:1/2", "0-99999999999", "cpu  a 5 x\n", "full total=x\n",
    "MemTotal: x kB\n", "MemTotal: " + "9" * 5000 + " kB\nMemAvailable: " + "9" * 5000 + " kB\n",
    "0 100000", "9" * 5000 + " 100000", "Filename\n/dev/zram0 partition 0 0 -2\n",
    "Filename\n/dev/zram0 partition " + "9" * 5000 + " 0 -2\n",
)  # fmt: skip


def read_all(root: Path, model: Path) -> dict[str, Any]:
    """Have every reader read a tree once."""
    sampler = Sampler(model, root=root, jtop=False)
    with sampler._lock:  # what its thread does, without the thread
        sampler._open()
        sampler._sample()
        sampler._sample()
        for source in sampler._sources:
            source.close()
    sensor = MemorySensor(root)
    seen = sensor.read(0.0)  # None where the kernel does not tell
    sensor.close()
    free_bytes = [memory.available(root).available_bytes, seen.free_bytes if seen else 0]
    assert min(free_bytes) >= 0
    assert memory.total_bytes(root) >= 0
    quota = cgroups.cpu_quota(root)
    assert quota is None or quota > 0
    assert processors.processors(root).threads >= 1
    assert sampler.latest is not None
    return {
        "sample": sampler.latest.as_json(),
        "missing": sampler.missing_line(),
        "machine": description.describe(root),
        "checks": [
            str(each) for each in [*board.checks(model, root), *sensors.checks(model, root)]
        ],
        "swaps": [str(each) for each in block_device.swaps(root)],
        "cpuset": cgroups.cpuset(root),
        "power": str(power_mode.power_mode(root)),
        "modes": power_mode.mode_names(root),
        "disturbances": str(disturbances.read(root)),
    }


def wrong_with(
    tmp_path: Path, tree: dict[str, str], pieces: Callable[[str], Iterable[str]]
) -> list[str]:
    """Put pieces of nonsense into each file of a tree; tell where a reader fails."""
    root, model = plant(tmp_path / "root", tree), tmp_path / "m.gguf"
    model.touch()
    read_all(root, model)
    wrong = []
    for file, text in tree.items():
        for nonsense in pieces(file):
            change(root, file, nonsense)
            try:
                json.dumps(read_all(root, model), allow_nan=False)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                wrong.append(f"{file} holds {nonsense[:40]!r}: {error!r} at {frames[-1]}")
        change(root, file, text)
    return wrong


@pytest.mark.parametrize("name", TREES)
def test_files_of_the_kernel_that_say_nonsense(tmp_path: Path, name: str) -> None:
    """Two pieces of nonsense for each file, others each time the list of files or pieces changes."""
    draw = random.Random(name)
    assert not wrong_with(tmp_path, TREES[name], lambda file: draw.sample(NONSENSE, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_every_nonsense_in_every_file(tmp_path: Path, name: str) -> None:
    assert not wrong_with(tmp_path, TREES[name], lambda file: NONSENSE)


GROUP = "sys/fs/cgroup/system.slice/remoe-edge.service/"
# What no reader may take for a number, or make a list of.
NO_NUMBERS = {
    "jetson": {
        "proc/stat": ("cpu  a 5 x\n",),
        "proc/meminfo": ("MemTotal: x kB\n", "MemTotal: " + "9" * 5000 + " kB\nMemAvailable: 5 kB\n"),
        "proc/pressure/memory": ("full total=x\n", "full total=" + "9" * 5000 + "\n"),
    },
    "trouble": {
        "proc/swaps": ("Filename\n/dev/zram0 partition " + "9" * 5000 + " 0 -2\n",),
        GROUP + "cpuset.cpus.effective": ("0-x", "0-3:1/2", "9" * 5000, "0-99999999999"),
        GROUP + "cpu.max": ("9" * 5000 + " 100000", "0 100000"),
    },
    "cgroup v1": {
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": ("0", "9" * 5000),
        "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": ("9" * 5000,),
        "sys/fs/cgroup/cpuset/a/cpuset.cpus": ("0-99999999999",),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_looks_like_a_number_and_is_none(tmp_path: Path, name: str) -> None:
    pieces = NO_NUMBERS[name]
    assert set(pieces) <= set(TREES[name])
    assert not wrong_with(tmp_path, TREES[name], lambda file: pieces.get(file, ()))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5\n", -5),
        ("--5", None),
        ("\u00b2", None),
        ("", None),
        ("5 6", None),
        ("max", None),
    ],
)
def test_a_number(tmp_path: Path, text: str, value: int | None) -> None:
    (tmp_path / "n").write_text(text)
    assert kernel_files.number(tmp_path / "n") == value


def test_a_group_that_says_minus_one_limits_nothing(tmp_path: Path) -> None:
    root = plant(tmp_path, VERSION_1)
    assert memory.available(root).cgroup_limit_bytes == 2 << 30
    change(root, "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "-1")
    assert memory.available(root).cgroup_limit_bytes is None


SOFT = """
import resource, sys
resource.setrlimit(resource.{limit}, (3 << 30, resource.RLIM_INFINITY))
from remoe_edge import BudgetError, Engine
from remoe_edge.machine import memory
room = memory.available()
assert "ulimit" in room.limited_by, room
assert room.available_bytes < 3 << 30, room
with Engine(sys.argv[1], cache="auto", n_ctx=64, threads=1) as engine:
    engine.evaluate([5, 6, 7])
    # Addresses that slots might need are not taken, and the cache does not follow them either.
    assert engine.native.most_slots == engine.native.n_slots, engine.stats().cache
try:
    Engine(sys.argv[1], cache="100%", n_ctx=8 << 20, threads=1)
except BudgetError as error:
    assert "ulimit" in str(error), error
else:
    sys.exit("a context of eight million tokens in three GiB")
"""


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_soft_limits_of_a_process(tmp_path: Path, limit: str) -> None:
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    done = subprocess.run(
        [sys.executable, "-c", SOFT.format(limit=limit), str(model)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


LOCALE = """
import locale, sys
from remoe_edge import Engine
for name in ("C", "C.UTF-8", "de_DE.UTF-8", "fr_FR.UTF-8", "tr_TR.UTF-8", "ar_EG.UTF-8", "pl_PL"):
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:  # not every locale is everywhere
        continue
    with Engine(sys.argv[1], cache="1.5MiB", n_ctx=256, threads=1) as engine:
        stats = engine.stats()
        print(stats.buffers["KV"], stats.cache.slots)
"""


def test_sizes_out_of_a_log_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    """llama.cpp writes "KV buffer size = 0.19 MiB"; where the comma rules, "0,19"."""
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    done = subprocess.run(
        [sys.executable, "-c", LOCALE, str(model)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split("\n")) - {""}) == 1, done.stdout
    assert not done.stdout.startswith("0 ")


def test_mounts_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    """Blanks and backslashes are escaped, and what is no UTF-8 is not."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_bytes(
        b"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"25 24 8:2 / /my\\040disk\\134x rw - ext4 /dev/sdb1 rw\n"
        b"26 24 8:3 / /caf\xe9 rw - ext4 /dev/sdc1 rw\n"
        b"27 24 8:4 / /caf\xc3\xa9 rw - ext4 /dev/sdd1 rw\n"
        b"no mount\n28 24 - x\n"
    )
    assert list(kernel_files.mounts(tmp_path)) == [
        ("/", "/dev/sda1"),
        ("/my disk\\x", "/dev/sdb1"),
        ("/caf\udce9", "/dev/sdc1"),
        ("/café", "/dev/sdd1"),
    ]
    assert block_device._device_under("/my disk\\x/swap", tmp_path) == "/dev/sdb1"
    assert list(kernel_files.mounts(tmp_path / "nowhere")) == []
