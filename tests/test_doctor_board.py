"""`doctor` on a tree of an Orin NX with every trouble a board can have, and what follows from each."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path

import pytest

import tiny_moe
from command_line import run
from recorded.trees import ORIN_NX, ORIN_NX_IN_TROUBLE, X86, change, plant
from remoe_edge.engine.locked_memory import lock_loaded
from remoe_edge.inspect import doctor
from remoe_edge.inspect.doctor import Check, board
from remoe_edge.machine.block_device import kind_of, swaps, whole_disk
from remoe_edge.machine.description import describe
from remoe_edge.machine.jetson import is_jetson
from remoe_edge.machine.power_mode import power_mode
from remoe_edge.machine.processors import count, processors
from test_telemetry_jtop import Client


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The board in trouble, with a stand-in of jtop."""
    module = types.ModuleType("jtop")
    module.jtop = Client  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("jtop", None)
    monkeypatch.setitem(sys.modules, "jtop", module)
    return plant(tmp_path / "orin", ORIN_NX_IN_TROUBLE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("board") / "m.gguf", "qwen3moe", "Q4_0")


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


TROUBLES = {
    "threads": (
        "info", ("3 compute", "6 of 8 processors", "2 of them are little", "time of 3"), "--cpus"
    ),
    "power mode": ("off", ("power mode 25W", "clocks change (schedutil)"), "nvpmodel -m 0"),
    "swap": (
        "off",
        ("/dev/zram0", "/dev/zram1", "compressed memory", "/swapfile", "SD card"),
        "nvzramconfig",
    ),
    "memory limits": (
        "info",
        ("2,048 MiB by memory.high of /sys/fs/cgroup/system.slice/remoe-edge.service",
         "3,072 MiB by memory.max of /sys/fs/cgroup/system.slice"),
        "--cache auto stays below",
    ),
    "page cache": ("info", ("2,000 MiB of the 2,402 MiB available are page cache",), ""),
    "GPU memory": ("off", ("CMA 256 MiB, 8.00 MiB of it free", "NVMAP holds 717 MiB"), "contiguous"),
    "CUDA VMM": ("info", ("7,441 MiB of memory",), "-DGGML_CUDA_NO_VMM=ON"),
    "storage": ("off", ("mmcblk1p1, SD card",), "NVMe drive"),
    "power": ("ok", ("jtop: VDD_IN",), ""),
    "temperatures": ("ok", ("4 zones, ", "the hottest at"), ""),
    "pressure": ("ok", ("PSI",), ""),
}  # fmt: skip


def test_every_trouble_of_a_board_is_named(orin: Path, model: Path) -> None:
    checks = by_name(doctor.examine(model, orin))
    for name, (state, parts, advice) in TROUBLES.items():
        check = checks[name]
        assert check.state == state, check
        for part in parts:
            assert part in check.detail, check
        assert advice in check.advice, check
    assert "wears an SD card out" in checks["swap"].advice
    assert "jetson_clocks" in checks["power mode"].advice


def test_a_board_that_is_set_up_well_has_nothing_off(tmp_path: Path, model: Path) -> None:
    root = plant(tmp_path, ORIN_NX)
    change(root, "var/lib/nvpmodel/status", "pmode:0000\n")
    change(root, "proc/swaps", "Filename Type Size Used Priority\n")
    change(root, "proc/self/mountinfo", "24 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n")
    for policy in (0, 4):
        change(root, f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_min_freq", 1984000)
    checks = by_name(board.checks(model, root))
    assert {name: check.detail for name, check in checks.items() if check.state == "off"} == {}
    assert checks["power mode"].detail == "power mode MAXN, clocks held at their highest"
    assert checks["storage"].detail.startswith(
        "nvme0n1p1, NVMe: some 2000 MiB/s, as a rule; reading for a token of this model: "
    )
    assert checks["memory limits"].state == "ok"
    assert checks["CUDA VMM"].state == "ok"


def test_what_is_no_board_has_no_board_trouble(tmp_path: Path, model: Path) -> None:
    for tree in (X86, {}):
        root = plant(tmp_path / str(len(tree)), tree)
        root.mkdir(exist_ok=True)
        assert [each for each in board.checks(model, root) if each.state == "off"] == []


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", 4), ("400000 100000", 4), ("190000 100000", 2), ("150000 100000", 1),
     ("50000 100000", 1), ("", 4)],
)  # fmt: skip
def test_a_quota_bounds_the_threads(orin: Path, quota: str, threads: int) -> None:
    change(orin, "sys/fs/cgroup/system.slice/remoe-edge.service/cpu.max", quota + "\n")
    found = processors(orin, {0, 1, 2, 3, 4, 5})
    assert (found.allowed, found.big, found.threads) == (6, 4, threads)


def test_cores_alike_or_untold_are_all_big(tmp_path: Path) -> None:
    found = processors(tmp_path, {0, 1, 2})
    assert (found.big, found.threads, found.quota, found.why()) == (3, 3, None, "")
    for number in range(3):
        change(tmp_path, f"sys/devices/system/cpu/cpu{number}/cpu_capacity", 800 + 50 * number)
    assert processors(tmp_path, {0, 1, 2}).big == 3
    assert [count(each) for each in ("0-3,6", "5", "", "x", "1-y")] == [5, 1, 0, 0, 0]


def test_kinds_of_storage(orin: Path) -> None:
    kinds = {
        "nvme0n1p2": "NVMe", "mmcblk1p1": "SD card", "mmcblk0": "eMMC", "sda1": "USB", "sdb": "SATA",
        "vda": "virtual disk", "/dev/nvme1n1": "NVMe", "loop0": "unknown kind",
    }  # fmt: skip
    assert {name: kind_of(name, orin) for name in kinds} == kinds
    assert [whole_disk(each) for each in ("nvme0n1", "xvda3", "mmcblk0p12")] == [
        "nvme0n1", "xvda", "mmcblk0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "state", "said"),
    [("nvme0n1p2", "ok", "NVMe: some 2000"), ("mmcblk0p1", "off", "eMMC: some 250"),
     ("mmcblk1p1", "off", "SD card: some 80"), ("sda1", "off", "USB: some 300"),
     ("sdb2", "ok", "SATA: some 450"), ("vda1", "info", "virtual disk")],
)  # fmt: skip
def test_each_kind_of_storage_is_judged(
    orin: Path, model: Path, tmp_path: Path, device: str, state: str, said: str
) -> None:
    change(orin, "proc/self/mountinfo", f"24 1 0:1 / / rw - ext4 /dev/{device} rw\n")
    check = board.storage(model, orin)
    assert check.state == state
    assert check.detail.startswith(f"{device}, {said}")
    assert ("remoe-edge probe" in check.advice) == (state == "off")
    slow = board.storage(tmp_path, orin)  # a folder: nothing is said of a model
    assert "for a token" not in slow.detail


def test_where_memory_is_swapped_to(orin: Path, tmp_path: Path) -> None:
    found = swaps(orin)
    assert [(each.name, each.zram, each.kind) for each in found] == [
        ("/dev/zram0", True, "unknown kind"),
        ("/dev/zram1", True, "unknown kind"),
        ("/swapfile", False, "SD card"),
    ]
    assert found[0].size_bytes == 635000 * 1024
    change(
        orin,
        "proc/swaps",
        "head\n/data/swap file 10 0 -2\nbroken line\n/dev/sda2 partition 10 5 -2\n",
    )
    assert [(each.name, each.kind) for each in swaps(orin)] == [
        ("/data/swap", "NVMe"), ("/dev/sda2", "USB"),
    ]  # fmt: skip
    assert "locks what `memlock` allows" in board.swap(swaps(orin)).advice
    assert swaps(tmp_path / "none") == []


def test_dense_weights_are_locked_or_said_where_there_is_swap(orin: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def allowed(flags: int) -> int:
        asked.append(flags)
        return 0

    assert lock_loaded(tmp_path / "no swap", allowed) is None
    assert asked == []
    assert lock_loaded(orin, allowed) is None
    assert asked == [5]  # what is mapped now, as it is touched
    note = lock_loaded(orin, lambda flags: 12)
    assert note is not None
    assert "/dev/zram0" in note
    assert "Cannot allocate memory" in note
    assert "ulimit -l" in note


def test_mode_and_clocks_stand_beside_measurements(orin: Path, tmp_path: Path) -> None:
    mode = power_mode(orin)
    assert (mode.number, mode.name, mode.held, mode.full) == ("3", "25W", False, False)
    assert mode.modes == {"0": "MAXN", "3": "25W"}
    about = describe(orin)
    assert (about["power_mode"], about["clocks_held"], about["governor"]) == (
        "25W",
        False,
        "schedutil",
    )
    bare = power_mode(tmp_path / "none")
    assert (bare.name, bare.held, bare.full, bare.line()) == (None, None, True, "")


def test_probe_says_what_a_drive_means_for_this_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "probe", model, "--seconds", "0.1").out
    assert "reading for a token of this model: " in said
    assert "with 25% of the experts, " in said
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(1 << 20))
    assert "of this model" not in run(capsys, "probe", plain, "--seconds", "0.1").out


# --- what boards in the field have besides ---


def test_a_board_is_known_by_its_device_tree_too(tmp_path: Path, model: Path) -> None:
    root = plant(tmp_path, ORIN_NX_IN_TROUBLE)
    (root / "etc/nv_tegra_release").unlink()  # as in a container on another base
    assert not is_jetson(root)
    change(root, "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0001\0nvidia,tegra234\0")
    assert is_jetson(root)
    checks = by_name(board.checks(model, root))
    assert "NVMAP holds" in checks["GPU memory"].detail
    assert "NO_VMM" in checks["CUDA VMM"].advice


def test_a_mode_that_nobody_has_set_is_the_boards_own(orin: Path) -> None:
    (orin / "var/lib/nvpmodel/status").unlink()
    assert power_mode(orin).name is None
    conf = (orin / "etc/nvpmodel.conf").read_text()
    change(orin, "etc/nvpmodel.conf", conf + "< PM_CONFIG DEFAULT=3 >\n")
    assert power_mode(orin).name == "25W"
    assert "nvpmodel -m 0" in board.power(orin).advice


def test_clocks_are_held_at_what_the_mode_allows(orin: Path) -> None:
    for policy in (0, 4):
        change(orin, f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_min_freq", 1190400)
        change(orin, f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_max_freq", 1190400)
    assert power_mode(orin).held
    change(orin, "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq", 115200)
    assert not power_mode(orin).held
    change(orin, "sys/devices/system/cpu/cpufreq/policy4/scaling_governor", "performance\n")
    assert power_mode(orin).held


def test_limits_of_version_1_are_found_without_links(tmp_path: Path, model: Path) -> None:
    tree = {
        "proc/self/cgroup": "5:cpu,cpuacct:/a/b\n4:memory:/a/b\n3:cpuset:/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{1 << 30}\n",
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{1 << 62}\n",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpuset/a/cpuset.cpus": "0-3\n",
        "sys/devices/system/cpu/online": "0-5\n",
    }
    checks = by_name(board.checks(model, plant(tmp_path, tree)))
    assert checks["threads"].detail.startswith("2 compute: a cpuset or affinity leaves 4 of 6")
    assert "the time of 2.5" in checks["threads"].detail
    assert checks["memory limits"].detail == (
        "1,024 MiB by memory.limit_in_bytes of /sys/fs/cgroup/memory/a"
    )


def test_storage_is_seen_through_encryption_and_a_nameless_root(orin: Path, model: Path) -> None:
    change(orin, "sys/class/block/dm-0/dm/name", "crypt_root\n")
    change(orin, "sys/class/block/dm-0/slaves/mmcblk1p1/partition", 1)
    change(orin, "sys/class/block/md0/slaves/nvme0n1/removable", 0)
    change(orin, "sys/class/block/md0/slaves/sda1/partition", 1)
    kinds = {"dm-0": "SD card", "/dev/mapper/crypt_root": "SD card", "md0": "USB",
             "/dev/mapper/none": "unknown kind"}  # fmt: skip
    assert {name: kind_of(name, orin) for name in kinds} == kinds
    change(orin, "proc/self/mountinfo", "24 1 179:1 / / rw - ext4 /dev/root rw\n")
    assert board.storage(model, orin).detail.startswith("root, unknown kind")
    block = orin / "sys/devices/platform/sdhci/mmc1/block/mmcblk1/mmcblk1p1"
    change(orin, str((block / "dev").relative_to(orin)), "179:1\n")
    numbers = orin / "sys/dev/block"
    numbers.mkdir(parents=True)
    (numbers / "179:1").symlink_to(block)
    assert board.storage(model, orin).state == "off"
    assert "SD card" in board.storage(model, orin).detail
    assert swaps(orin)[-1].kind == "SD card"
    assert "wears an SD card out" in board.swap(swaps(orin)).advice


def test_zram_elsewhere_is_not_nvidias_service(orin: Path) -> None:
    assert "nvzramconfig" in board.swap(swaps(orin)).advice
    assert "nvzramconfig" not in board.swap(swaps(orin), jetson=False).advice
    assert "zram takes memory" in board.swap(swaps(orin), jetson=False).advice
