"""The GPUs that llama.cpp can use here, as its backends name them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_GPU, _IGPU = 1, 2  # ggml_backend_dev_type
_NO_GPU_BACKENDS = frozenset({"CPU", "Storage", "BLAS", "RPC"})


@dataclass(frozen=True)
class Gpu:
    """Hold one GPU. unified: it computes in the machine's own memory; sizes as its driver tells them."""

    name: str
    description: str
    unified: bool
    free_bytes: int
    total_bytes: int


def gpus() -> list[Gpu]:
    """List the GPUs that llama.cpp would use: discrete ones, or, without any, integrated ones."""
    found = [_gpu(device, kind) for device, kind in _devices() if kind in (_GPU, _IGPU)]
    return [each for each in found if not each.unified] or found


def backends_without_device() -> list[str]:
    """Name the GPU backends of this build of llama.cpp that find nothing to compute on."""
    lib = _library()
    registries = [lib.ggml_backend_reg_get(i) for i in range(lib.ggml_backend_reg_count())]
    named = [(lib.ggml_backend_reg_name(each).decode(), each) for each in registries]
    return [
        name
        for name, registry in named
        if name not in _NO_GPU_BACKENDS and lib.ggml_backend_reg_dev_count(registry) == 0
    ]


def _devices() -> list[tuple[Any, int]]:
    lib = _library()
    devices = [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]
    return [(each, lib.ggml_backend_dev_type(each)) for each in devices]


def _gpu(device: Any, kind: int) -> Gpu:
    lib = _library()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return Gpu(
        lib.ggml_backend_dev_name(device).decode("utf-8", "replace"),
        lib.ggml_backend_dev_description(device).decode("utf-8", "replace"),
        kind == _IGPU,
        free.value,
        total.value,
    )


def _library() -> Any:
    from remoe_edge.native import llama_cpp

    lib = llama_cpp.llama_cpp._lib
    for name in ("ggml_backend_dev_get", "ggml_backend_reg_get"):
        getattr(lib, name).restype, getattr(lib, name).argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for name in ("ggml_backend_dev_count", "ggml_backend_reg_count"):
        getattr(lib, name).restype = ctypes.c_size_t
    lib.ggml_backend_reg_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_reg_dev_count.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_type.restype = ctypes.c_int
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    for name in ("dev_name", "dev_description", "reg_name"):
        function = getattr(lib, f"ggml_backend_{name}")
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    lib.ggml_backend_dev_memory.argtypes = [
        ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t),
    ]  # fmt: skip
    return lib
