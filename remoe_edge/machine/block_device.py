"""What kind of storage a disk is: NVMe, eMMC, SD card, USB, SATA; and what swaps onto it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.machine import kernel_files
from remoe_edge.machine.cgroups import ROOT

NVME, EMMC, SD, USB, SATA, VIRTUAL, UNKNOWN = (
    "NVMe", "eMMC", "SD card", "USB", "SATA", "virtual disk", "unknown kind",
)  # fmt: skip
# Random reads of about a MiB, MiB/s, as their makers and buses have it (not measured by us): what to
# take for an order of magnitude until `remoe-edge probe` has said it.
EXPECTED_MIB_PER_S = {NVME: 2000, SATA: 450, USB: 300, EMMC: 250, SD: 80}
SLOW = (EMMC, SD, USB)


@dataclass(frozen=True)
class Swap:
    """Hold one place that memory is swapped to: its size, and the kind of storage under it.

    zram: compressed memory, no storage at all.
    """

    name: str
    size_bytes: int
    used_bytes: int
    zram: bool
    kind: str


def kind_of(name: str, root: Path = ROOT) -> str:
    """Say of what kind the disk (or partition) of that name is: nvme0n1, mmcblk1p1, sda.

    An encrypted or joined one (dm-0, /dev/mapper/root, md0) is of the slowest kind below it.
    """
    name = _mapped(whole_disk(name), root)
    folder = root / "sys/class/block" / name
    if below := [kind_of(each.name, root) for each in folder.glob("slaves/*")]:
        return min(below, key=lambda kind: EXPECTED_MIB_PER_S.get(kind, 1 << 30))
    if name.startswith("nvme"):
        return NVME
    if name.startswith("mmcblk"):
        # "MMC" is soldered, "SD" is a card that one takes out.
        return SD if kernel_files.word(folder / "device/type").upper() == "SD" else EMMC
    if name.startswith(("vd", "xvd")):
        return VIRTUAL
    if name.startswith("sd"):
        where = str(folder.resolve()) + kernel_files.word(folder / "device/uevent")
        return USB if "usb" in where.lower() or _removable(folder) else SATA
    return UNKNOWN


def _mapped(name: str, root: Path) -> str:
    """Give the kernel's name of what the device mapper calls mapper/NAME."""
    if not name.startswith("mapper/"):
        return name
    for folder in root.glob("sys/class/block/dm-*"):
        if kernel_files.word(folder / "dm/name") == name.removeprefix("mapper/"):
            return folder.name
    return name


def _removable(folder: Path) -> bool:
    return kernel_files.word(folder / "removable") == "1"


def whole_disk(name: str) -> str:
    """Cut a partition's number off its disk's name."""
    name = name.removeprefix("/dev/")
    match = re.fullmatch(r"((?:nvme\d+n|mmcblk)\d+)p\d+|((?:sd|vd|xvd)[a-z]+)\d+", name)
    return (match[1] or match[2]) if match else name


def swaps(root: Path = ROOT) -> list[Swap]:
    """List where memory is swapped to."""
    found = []
    for line in kernel_files.text(root / "proc/swaps").splitlines()[1:]:
        parts = line.split()
        if len(parts) < 4:
            continue
        size_kib, used_kib = kernel_files.whole(parts[2]), kernel_files.whole(parts[3])
        if size_kib is None or used_kib is None or min(size_kib, used_kib) < 0:
            continue
        name, how = parts[0], parts[1]
        device = name if how == "partition" else _device_under(name, root)
        zram = name.startswith("/dev/zram")
        kind = UNKNOWN if zram or device is None else kind_of(device, root)
        found.append(Swap(name, size_kib * 1024, used_kib * 1024, zram, kind))
    return found


def _device_under(path: str, root: Path) -> str | None:
    """Find the device that a file's file system is mounted from."""
    best, device = "", None
    for point, source in kernel_files.mounts(root):
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, device = point, source
    return device if device is not None and device.startswith("/dev/") else None
