"""Which GPUs llama.cpp can use here, and why a build for one finds none."""

from __future__ import annotations

import ctypes

from remoe_edge.inspect.doctor.check import INFO, OFF, OK, Check
from remoe_edge.machine.gpu import Gpu, backends_without_device, gpus
from remoe_edge.units import mib

# Backend -> the library of its driver, and what to do where that is absent.
_DRIVERS = {
    "CUDA": (
        "libcuda.so.1",
        "install NVIDIA's driver; in a container, start it with --runtime nvidia or --gpus all",
    ),
    "Vulkan": (
        "libvulkan.so.1",
        "install a Vulkan driver (mesa-vulkan-drivers, or the GPU's own); `vulkaninfo` lists devices",
    ),
}


def check() -> Check:
    """Name the GPUs, or say what is missing for one."""
    found, idle = gpus(), backends_without_device()
    if found:
        return Check("GPU", OK, "; ".join(_described(each) for each in found))
    if idle:
        said = [_without_device(name) for name in idle]
        return Check("GPU", OFF, "; ".join(each for each, _ in said), said[0][1])
    return Check(
        "GPU", INFO, "this build of llama.cpp has no GPU backend; the processor computes",
        "docs/gpu.md tells how to build it with one",
    )  # fmt: skip


def _described(gpu: Gpu) -> str:
    memory = f"{mib(gpu.free_bytes)} of {mib(gpu.total_bytes)} free"
    shared = ", shared with the processor" if gpu.unified else ""
    return f"{gpu.name}: {gpu.description}, {memory}{shared}"


def _without_device(name: str) -> tuple[str, str]:
    """Say why a backend has no device, and what to do."""
    library, advice = _DRIVERS.get(name, (None, ""))
    if library is not None and not _loads(library):
        why = f"there is no driver ({library} is not found)"
    else:
        why = "it finds no device"
    return f"llama.cpp is built for {name}, but {why}; the processor computes", advice


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
