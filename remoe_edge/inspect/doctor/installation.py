"""Is everything installed that the engine needs, and which optional packages are?"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
from typing import Any

from remoe_edge.errors import InputError, RemoeError
from remoe_edge.inspect.doctor.check import FAIL, INFO, OK, Check

# Extra -> the packages that it brings.
EXTRAS = {
    "jetson": ("jtop",),
    "tune": ("torch", "safetensors", "tokenizers", "transformers"),
    "plot": ("matplotlib",),
    "remote": ("ray",),
    "serve": ("starlette", "uvicorn"),
}


def checks() -> list[Check]:
    """Check remoe-edge, Python, llama.cpp, the ABI between them, and the model that comes along."""
    return [_package(), _python(), *_native(), _model()]


def extras() -> list[Check]:
    """Tell which extras are installed."""
    return [_extra(name, packages) for name, packages in EXTRAS.items()]


def _package() -> Check:
    import remoe_edge

    return Check("remoe-edge", OK, remoe_edge.__version__)


def _python() -> Check:
    uname = platform.uname()
    system = f"{uname.system} {uname.release}, {uname.machine}"
    return Check("python", OK, f"{platform.python_version()} on {system}")


def _native() -> list[Check]:
    """Check llama.cpp's build and that the native core accepts it."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return [Check("llama.cpp", FAIL, "llama-cpp-python is missing", "install remoe-edge again")]
    try:
        from remoe_edge import native
    except RemoeError as error:
        return [Check("llama.cpp", FAIL, f"llama-cpp-python {version}: {error}")]
    except (ImportError, OSError, RuntimeError) as error:
        advice = "install remoe-edge again, so that it is built against this llama-cpp-python"
        return [Check("llama.cpp", FAIL, f"llama-cpp-python {version}: {error}", advice)]
    ggml, commit = ggml_build(native.llama_cpp)
    return [
        Check("llama.cpp", OK, f"llama-cpp-python {version}, ggml {ggml}, commit {commit}"),
        Check("ABI", OK, "the native core and llama.cpp's backend interface fit together"),
    ]


def ggml_build(llama_cpp: Any) -> tuple[str, str]:
    """Ask the ggml library that llama.cpp uses for its version and commit."""
    answers = []
    for name in ("ggml_version", "ggml_commit"):
        function = llama_cpp.llama_cpp._lib[name]  # not by a path: a wheel holds copies
        function.restype = ctypes.c_char_p
        answers.append((function() or b"unknown").decode("utf-8", "replace"))
    return answers[0], answers[1]


def _extra(name: str, packages: tuple[str, ...]) -> Check:
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if not missing:
        return Check(f"[{name}]", OK, "installed")
    return Check(
        f"[{name}]", INFO, f"optional, without {', '.join(missing)}",
        f"pip install 'remoe-edge[{name}]'",
    )  # fmt: skip


def _model() -> Check:
    from remoe_edge.files.models import shipped_model

    try:
        return Check("model", OK, f"{shipped_model()} comes along")
    except InputError as error:
        return Check("model", INFO, str(error))
