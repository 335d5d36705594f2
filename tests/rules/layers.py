"""Who may know whom: the one place where the layers are written down."""

from __future__ import annotations

# C++: a layer includes itself and whatever it reaches through these. `csrc/CMakeLists.txt` links
# the same way, which a test holds it to. The siblings gguf, storage, cache and trace stay apart.
CPP_LAYERS: dict[str, tuple[str, ...]] = {
    "base": (),
    "gguf": ("base",),
    "storage": ("base",),
    "cache": ("base",),
    "trace": ("base",),
    "prefetch": ("gguf", "storage", "cache", "trace"),
    "runtime": ("prefetch",),
    "wire": ("base",),
    "remote": ("runtime", "wire"),
    "device": ("remote",),
    "bindings": ("device",),
    "plugin": ("device",),
    "testing": (),
}
# Headers of others, and the layers that may see them.
CPP_OUTSIDE: dict[str, frozenset[str]] = {
    "ggml": frozenset({"device", "plugin"}),
    "llama": frozenset({"device"}),
    "pybind11": frozenset({"bindings"}),
}

# Python: rooms (folders and files directly in remoe_edge/) by height. A room imports rooms of its
# own height and below, never above.
PYTHON_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"native", "amx", "_core", "errors", "units", "names", "_moved"}),
    frozenset({"engine", "routing", "files", "machine"}),
    frozenset(
        {
            *("bench", "plan", "placement", "predict", "profile", "tune", "telemetry", "convert"),
            *("inspect", "quality", "remote", "serve", "deploy", "plugin"),
        }
    ),
    frozenset({"api"}),  # puts features and the engine together for programs
    frozenset({"cli"}),
)
# Packages of others that belong to one room; "a.b" means that module and what is in it.
_WEB = ("fastapi", "starlette", "uvicorn", "flask", "aiohttp", "tornado", "django", "bottle")
PYTHON_OUTSIDE: dict[str, frozenset[str]] = {
    "click": frozenset({"cli"}),
    "ray": frozenset({"deploy"}),
    "torch": frozenset({"tune"}),
    "transformers": frozenset({"tune"}),
    "llama_cpp.server": frozenset({"serve"}),
    **dict.fromkeys(_WEB, frozenset({"serve"})),
}
# Rooms that may read environment variables. native.py sets how OpenMP's threads wait, which has to
# happen before llama.cpp is loaded, and respects what the user has set.
READS_ENVIRONMENT = frozenset({"cli", "native"})
# The same of C and C++. A plug-in is loaded by somebody else's program and has no command line: its
# settings are environment variables, and so is where its builds are. ggml's own variable in
# row_products.cc is an exception, see exceptions.py.
CPP_READS_ENVIRONMENT = frozenset({"csrc/plugin/settings.cc", "csrc/plugin/entry/entry.c"})
