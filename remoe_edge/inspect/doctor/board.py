"""A board's own troubles: swap, limits, threads, power mode, the GPU's memory, kind of storage."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.inspect.doctor.check import INFO, OFF, OK, Check
from remoe_edge.machine import kernel_files
from remoe_edge.machine.block_device import EXPECTED_MIB_PER_S, SD, SLOW, Swap, kind_of, swaps
from remoe_edge.machine.cgroups import cpuset, memory_groups
from remoe_edge.machine.disk import disk_of
from remoe_edge.machine.jetson import is_jetson
from remoe_edge.machine.memory import field_bytes
from remoe_edge.machine.power_mode import power_mode
from remoe_edge.machine.processors import listed, processors
from remoe_edge.plan import reading_time
from remoe_edge.units import MIB, mib

_SMALL_BOARD_BYTES = 9 << 30  # boards of "8 GB", whose MemTotal is less than that


def checks(path: Path, root: Path) -> list[Check]:
    """Check what is special to a small board; on others most of it is fine."""
    meminfo = kernel_files.text(root / "proc/meminfo")
    return [
        threads(root),
        power(root),
        swap(swaps(root), is_jetson(root)),
        limits(root),
        page_cache(meminfo),
        gpu_memory(meminfo, is_jetson(root)),
        cuda_vmm(meminfo, is_jetson(root)),
        storage(path, root),
    ]


def threads(root: Path) -> Check:
    """Check how many threads compute, and why not more."""
    # Of a recorded tree the processors are told by its own cpuset.
    allowed = None if root == Path("/") else listed(cpuset(root) or "") or None
    found = processors(root, allowed)
    said = f"{found.threads} compute"
    if not (why := found.why()):
        return Check("threads", OK, said)
    advice = ""
    if found.quota is not None and found.quota < found.allowed:
        advice = "raise the quota (cpu.max, or docker's --cpus) to compute faster"
    return Check("threads", INFO, f"{said}: {why}", advice)


def power(root: Path) -> Check:
    """Check the power mode and whether the clocks are held."""
    mode = power_mode(root)
    if mode.name is None and mode.held is None:
        return Check("power mode", INFO, "neither power modes nor clocks are told here")
    advice = []
    if not mode.full:
        best = next((n for n, name in mode.modes.items() if name.upper().startswith("MAXN")), "0")
        advice.append(f"sudo nvpmodel -m {best} is the mode without a limit")
    if mode.held is False and is_jetson(root):
        advice.append("sudo jetson_clocks holds the clocks for a measurement")
    state = OK if mode.full and mode.held is not False else (INFO if mode.full else OFF)
    return Check("power mode", state, mode.line(), "; ".join(advice))


def swap(found: list[Swap], jetson: bool = True) -> Check:
    """Check what memory may be swapped to."""
    if not found:
        return Check("swap", OK, "none: weights stay in memory")
    said = ", ".join(
        f"{each.name} ({mib(each.size_bytes)}, {mib(each.used_bytes)} used, "
        f"{'compressed memory' if each.zram else each.kind})"
        for each in found
    )
    advice = []
    if any(each.zram for each in found):
        end = "systemctl disable --now nvzramconfig" if jetson else "swapoff it"
        advice.append(
            f"zram takes memory and processor time from the model: sudo {end}, or let remoe-edge lock "
            "its memory (`memlock`)"
        )
    if any(each.kind == SD for each in found):
        advice.append(
            "swapping wears an SD card out, within weeks if a model is swapped to it: sudo swapoff "
            "it, or move it to an NVMe drive"
        )
    if not advice:
        advice.append(
            "an expert in swap is slower than reading it again: remoe-edge locks what `memlock` allows"
        )
    return Check("swap", OFF, said, "; ".join(advice))


def limits(root: Path) -> Check:
    """Name every control group that limits memory, of both versions and at all levels."""
    found = memory_groups(root)
    if not found:
        return Check("memory limits", OK, "no control group limits memory")
    said = "; ".join(
        f"{mib(each.limit_bytes)} by {each.limit_name} of {_below(each.folder, root)}"
        for each in sorted(found, key=lambda each: each.limit_bytes)
    )
    tightest = min(found, key=lambda each: each.limit_bytes)
    advice = ""
    if tightest.limit_name == "memory.high":
        advice = "beyond memory.high the kernel slows everything down: --cache auto stays below it"
    return Check("memory limits", INFO, said, advice)


def _below(folder: Path, root: Path) -> str:
    return "/" + str(folder.relative_to(root))


def page_cache(meminfo: str) -> Check:
    """Tell how much of what counts as available is page cache."""
    cached, free = field_bytes(meminfo, "Cached"), field_bytes(meminfo, "MemFree")
    available = field_bytes(meminfo, "MemAvailable")
    if cached is None or free is None or available is None:
        return Check("page cache", INFO, "/proc/meminfo does not tell")
    dropped = max(0, available - free)
    return Check(
        "page cache", INFO,
        f"{mib(dropped)} of the {mib(available)} available are page cache that would be dropped; "
        "remoe-edge reads past it (O_DIRECT) and fills none itself",
    )  # fmt: skip


def gpu_memory(meminfo: str, jetson: bool) -> Check:
    """Tell what CUDA's memory comes from: CMA, and what NVMAP holds of the board's memory."""
    total, free = field_bytes(meminfo, "CmaTotal"), field_bytes(meminfo, "CmaFree")
    held = field_bytes(meminfo, "NvMapMemUsed")
    if not jetson:
        return Check("GPU memory", INFO, "no memory is shared with a Jetson's GPU here")
    parts = []
    if total:
        parts.append(f"CMA {mib(total)}, {mib(free or 0)} of it free")
    if held is not None:
        parts.append(f"NVMAP holds {mib(held)}, which no program's own size shows")
    if not parts:
        return Check("GPU memory", INFO, "neither CMA nor NVMAP is told by /proc/meminfo")
    advice = ""
    if total and (free or 0) < 32 * MIB:
        advice = (
            "CUDA may fail to get contiguous memory: end what uses the GPU or camera, or raise cma= on "
            "the kernel's command line"
        )
    return Check("GPU memory", OFF if advice else INFO, "; ".join(parts), advice)


def cuda_vmm(meminfo: str, jetson: bool) -> Check:
    """Tell whether llama.cpp's CUDA backend should be built without virtual memory management."""
    total = field_bytes(meminfo, "MemTotal") or 0
    if not jetson:
        return Check("CUDA VMM", INFO, "no Jetson")
    if total >= _SMALL_BOARD_BYTES:
        return Check("CUDA VMM", OK, f"{mib(total)} of memory: llama.cpp's default is fine")
    return Check(
        "CUDA VMM", INFO,
        f"{mib(total)} of memory: llama.cpp's CUDA pool reserves more addresses than such a board maps",
        'build with CMAKE_ARGS="-DGGML_CUDA=on -DGGML_CUDA_NO_VMM=ON"',
    )  # fmt: skip


def storage(path: Path, root: Path) -> Check:
    """Tell the kind of storage that the model lies on, and what to expect of it."""
    name = _disk_name(path, root)
    if name is None:
        return Check("storage", INFO, f"no block device is known for {path}")
    kind = kind_of(name, root)
    expected = EXPECTED_MIB_PER_S.get(kind)
    said = f"{name}, {kind}"
    if expected is not None:
        said += f": some {expected} MiB/s, as a rule"
        if times := reading_time.reading_times(path, expected * MIB):
            said += f"; {reading_time.line(times)}"
    if kind in SLOW:
        return Check(
            "storage", OFF, said,
            "measure it with remoe-edge probe; a model that does not fit in memory wants an NVMe drive",
        )  # fmt: skip
    return Check("storage", OK if expected else INFO, said, "")


def _disk_name(path: Path, root: Path) -> str | None:
    if root == Path("/"):
        disk = disk_of(path)
        return None if disk is None else disk.name
    # A recorded tree says itself what its root lies on.
    for point, source in kernel_files.mounts(root):
        if point == "/" and source.startswith("/dev/"):
            return source.removeprefix("/dev/")
    return None
