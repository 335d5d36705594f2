"""Bring llama.cpp and the native core into the process, in the order that both need.

OpenMP's threads must not spin while they wait: on two shared cores that made a token fourteen times
slower. The OpenMP runtime reads its settings once, when it is loaded, so they are made here, before
llama.cpp loads it. Then llama_cpp's libraries come in, so that the core finds the same copies by name;
they are kept off AMX code that would crash; and last comes the core, which refuses any other build
of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from remoe_edge.errors import AbiError, UnsupportedError

LLAMA_CPP_PYTHON = "0.3.36"

# A waiting thread looks this often (a few microseconds) before it sleeps: long enough to bridge the
# gap between two operations, short enough to leave the core to I/O.
_WAIT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


def _openmp_loaded() -> bool:
    try:
        return b"libgomp" in Path("/proc/self/maps").read_bytes()
    except OSError:
        return False


def _choose_wait_policy() -> str:
    """Set how OpenMP's threads wait, and say in a line what will hold."""
    # Environment variables are for cli/ alone. This is the exception: OpenMP has no other way to be
    # told, reads them once when llama.cpp loads it, and a program may import the engine without cli/.
    chosen = [name for name in _WAIT if name in os.environ]
    if chosen:
        return "from the environment: " + ", ".join(f"{n}={os.environ[n]}" for n in chosen)
    if _openmp_loaded():
        return (
            "unknown: another package loaded the OpenMP runtime first; import remoe_edge before it, "
            "or set OMP_WAIT_POLICY=passive"
        )
    os.environ.update(_WAIT)
    return "passive, after a short spin"


WAIT_POLICY = _choose_wait_policy()

if sys.platform != "linux":
    raise UnsupportedError(f"remoe-edge runs on Linux, not on {sys.platform}")

import llama_cpp  # noqa: E402

if llama_cpp.__version__ != LLAMA_CPP_PYTHON:
    raise AbiError(
        f"remoe-edge needs llama-cpp-python {LLAMA_CPP_PYTHON} exactly and finds "
        f"{llama_cpp.__version__}: pip install llama-cpp-python=={LLAMA_CPP_PYTHON}"
    )

from remoe_edge import amx  # noqa: E402

amx.avoid()  # before anybody can ask llama.cpp which buffer types it has

try:
    from remoe_edge import _core
except ImportError as error:
    raise ImportError(
        f"{Path(__file__).parent} holds no compiled core ({error}): it is a source tree; run from "
        "another folder after `pip install .`, or install with `pip install -e .`"
    ) from error

try:
    _core.check_abi()
except UnsupportedError as error:
    raise AbiError(str(error)) from None

__all__ = ["LLAMA_CPP_PYTHON", "WAIT_POLICY", "_core", "llama_cpp"]
