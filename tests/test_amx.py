"""AMX code that a compiler broke: llama.cpp is kept off it before anything can run on it.

The crash itself needs a processor with AMX. What is checked everywhere: which builds count as broken,
that the kernel's refusal is brought about and undone, and that every process does it before
llama.cpp is asked.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tiny_moe
from remoe_edge import amx
from remoe_edge.engine.engine import Engine
from remoe_edge.errors import UnsupportedError

TESTS = Path(__file__).parent
ARCH_PRCTL, REQUEST_PERMISSION, TILES = 158, 0x1023, 18


@pytest.mark.parametrize(
    ("version", "breaks"),
    [
        ((10, 2), False), ((11, 4), True), ((11, 5), False), ((12, 2), True), ((12, 4), False),
        ((13, 2), True), ((13, 3), False), ((14, 1), False), ((15, 0), False),
    ],
)  # fmt: skip
def test_which_compilers_drop_a_tiles_configuration(version: tuple[int, int], breaks: bool) -> None:
    assert amx.breaks_tiles(*version) is breaks


@pytest.mark.parametrize(
    ("comments", "versions"),
    [
        (b"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0", [(12, 2)]),
        (b"GCC: (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0\0", [(11, 4)]),
        (b"GCC: (GNU) 13.2.1 20231205 (Red Hat 13.2.1-6)\0", [(13, 2)]),
        (b"GCC: (crosstool-NG (1.25.0) 2) 12.3.0\0", [(12, 3)]),
        (b"GCC: (Debian 12.2.0-14) 12.2.0\0GCC: (GNU) 13.3.0\0", [(12, 2), (13, 3)]),
        (b"GCC: (Debian 12.2.0-14) 12.2.0\0clang version 18.1.3\0", []),
        (b"rustc version 1.80\0", []),
    ],
)
def test_the_compilers_are_read_from_the_library(
    comments: bytes, versions: list[tuple[int, int]]
) -> None:
    assert amx.compilers(b"\x7fELF\0code\0" + comments + b"\0.symtab\0") == versions


def test_the_library_is_the_copy_in_use() -> None:
    """A wheel holds copies under several names; only one of them is mapped."""
    used = amx._cpu_library()
    assert "libggml-cpu" in used.name
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert str(used) in mapped


def a_build(monkeypatch: pytest.MonkeyPatch, library: Path, *, with_amx: bool) -> str | None:
    """Judge a llama.cpp of that library, built for a processor with or without AMX."""
    import llama_cpp

    said = b"CPU : AVX512 = 1 | AMX_INT8 = 1 |" if with_amx else b"CPU : AVX512 = 1 |"
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: said)
    monkeypatch.setattr(amx, "_cpu_library", lambda: library)
    return amx.compiler_fault.__wrapped__()


def test_a_build_is_broken_by_its_compiler_and_for_amx_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = tmp_path / "bad.so", tmp_path / "good.so"
    bad.write_bytes(b"\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0")
    good.write_bytes(b"\0GCC: (Debian 14.2.0-19) 14.2.0\0")
    found = a_build(monkeypatch, bad, with_amx=True)
    assert found is not None
    assert "GCC 12.2" in found
    assert a_build(monkeypatch, bad, with_amx=False) is None
    assert a_build(monkeypatch, good, with_amx=True) is None
    assert a_build(monkeypatch, tmp_path / "none.so", with_amx=True) is None


# --- the signal stack ---


def alternate_stack() -> tuple[int | None, int, int]:
    stack = amx._SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.flags, stack.n_bytes


def test_the_signal_stack_is_small_for_the_block_and_then_as_before() -> None:
    before, mask = alternate_stack(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    elsewhere: list[tuple[int | None, int, int]] = []
    with amx.small_signal_stack():
        _, flags, n_bytes = alternate_stack()
        assert (flags, n_bytes) == (0, 2048)
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        other = threading.Thread(target=lambda: elsewhere.append(alternate_stack()))
        other.start()
        other.join()
    assert alternate_stack() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert elsewhere[0][1:] == (2, 0)  # SS_DISABLE: other threads have none


def test_a_signal_stack_that_was_there_comes_back_after_an_error_too() -> None:
    libc, before = ctypes.CDLL(None), alternate_stack()
    memory = ctypes.create_string_buffer(1 << 16)
    mine = amx._SignalStack(ctypes.addressof(memory), 0, 1 << 16)
    found = amx._SignalStack()
    assert libc.sigaltstack(ctypes.byref(mine), ctypes.byref(found)) == 0
    try:
        placed = alternate_stack()
        with pytest.raises(RuntimeError), amx.small_signal_stack():
            raise RuntimeError
        assert alternate_stack() == placed
    finally:
        libc.sigaltstack(ctypes.byref(found), None)
    assert alternate_stack() == before


@pytest.mark.skipif(
    "amx_tile" not in Path("/proc/cpuinfo").read_text(), reason="the processor has no AMX"
)
def test_the_kernel_refuses_amx_beside_a_small_signal_stack() -> None:
    script = f"""
import ctypes
from remoe_edge import amx
request = lambda: ctypes.CDLL(None).syscall({ARCH_PRCTL}, {REQUEST_PERMISSION}, {TILES})
with amx.small_signal_stack():
    assert request() != 0
assert request() == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_one_line_on_stderr_is_kept_from_the_user_and_no_other(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with amx._without_line(b"AMX is not ready to be used!\n"):
        os.write(2, b"before\nAMX is not ready to be used!\nafter\n")
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "before\nafter\nlater\n"


# --- when it is done ---

# Notes in a file what is asked of llama.cpp and when, in a process that takes its build for broken.
_WATCHED = """
import json, sys
sys.path.insert(0, {tests!r})
import llama_cpp
from remoe_edge import amx
events = []

def seen(name):
    events.append([name, "remoe_edge._core" in sys.modules])
    open({log!r}, "w").write(json.dumps(events))

def watched(module, name):
    original = getattr(module, name)
    def call(*arguments):
        seen(name)
        return original(*arguments)
    setattr(module, name, call)

amx.compiler_fault = lambda: "its AMX code crashes" if {broken} else None
listed = amx.extra_buffer_types
def extra_buffer_types():
    import ctypes
    stack = amx._SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    seen(f"list beside {{stack.n_bytes}}")
    return listed()
amx.extra_buffer_types = extra_buffer_types
for name in ("llama_backend_init", "llama_model_load_from_file"):
    watched(llama_cpp, name)
    if hasattr(llama_cpp.llama_cpp, name):
        watched(llama_cpp.llama_cpp, name)
"""
_ENTRIES = {
    "engine": """
from remoe_edge import Engine
with Engine({model!r}, stream=False, repack=True, n_ctx=64, threads=1, publish=False) as engine:
    assert list(engine.generate([5, 6, 7], max_tokens=2))
""",
    "streamed engine": """
from remoe_edge import Engine
with Engine({model!r}, repack=True, n_ctx=64, threads=1, publish=False) as engine:
    assert list(engine.generate([5, 6, 7], max_tokens=2))
""",
    "stock arm": """
from remoe_edge.bench.stock import StockModel
stock = StockModel({model!r}, "stock-resident", repack=True, threads=1, n_ctx=64, n_batch=32, n_ubatch=32)
stock.evaluate([5, 6, 7], reset=True)
assert "remoe_edge._core" not in sys.modules
""",
    "stock in tests": """
import io, stock
request = dict(model={model!r}, answer={log!r} + ".npz", settings=dict(prompt=[5, 6, 7], n_greedy=1))
sys.stdin = io.StringIO(json.dumps(request) + "\\n")
stock._main()
assert "remoe_edge._core" not in sys.modules
""",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("amx") / "tiny.gguf", "qwen3moe", "Q4_0")


def events(entry: str, model: Path, tmp_path: Path, *, broken: bool) -> list[list[object]]:
    log = tmp_path / "events.json"
    script = (_WATCHED + _ENTRIES[entry]).format(
        tests=str(TESTS), model=str(model), log=str(log), broken=broken
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "AMX" not in done.stderr
    told: list[list[object]] = json.loads(log.read_text()) if log.exists() else []
    return told


@pytest.mark.parametrize("entry", _ENTRIES)
def test_broken_amx_is_avoided_before_anything_else(
    entry: str, model: Path, tmp_path: Path
) -> None:
    first, *later = events(entry, model, tmp_path, broken=True)
    assert first == ["list beside 2048", False]  # before the core is there
    assert not [name for name, _ in later if str(name).startswith("list")]
    assert later or entry == "streamed engine"


@pytest.mark.parametrize("entry", _ENTRIES)
def test_nothing_is_touched_where_nothing_is_broken(
    entry: str, model: Path, tmp_path: Path
) -> None:
    told = events(entry, model, tmp_path, broken=False)
    assert not [name for name, _ in told if str(name).startswith("list")]


def test_what_could_not_be_avoided_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "compiler_fault", lambda: "its AMX code crashes")
    monkeypatch.setattr(amx, "avoid", lambda: False)
    for stream in (True, False):
        with pytest.raises(
            UnsupportedError, match="its AMX code crashes, .*: run with --no-repack"
        ):
            Engine(model, repack=True, stream=stream)
    Engine(model).close()
    monkeypatch.setattr(amx, "avoid", lambda: True)
    Engine(model, repack=True).close()


def test_a_list_with_amx_in_it_is_not_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "compiler_fault", lambda: "its AMX code crashes")
    monkeypatch.setattr(amx, "extra_buffer_types", lambda: ["AMX", "CPU_REPACK"])
    assert amx.avoid.__wrapped__() is False
    monkeypatch.setattr(amx, "extra_buffer_types", lambda: ["CPU_REPACK"])
    assert amx.avoid.__wrapped__() is True
