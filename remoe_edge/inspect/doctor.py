"""What this machine and this installation can do, one check at a time, and what to do about the rest.

Nothing here needs the engine to work: a check that finds it broken says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import mmap
import os
import platform
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remoe_edge.errors import InputError, RemoeError
from remoe_edge.machine import amx, kernel_files, memory
from remoe_edge.units import MIB, mib

OK, OFF, INFO, FAIL = "ok", "off", "info", "fail"
_PAGE_BYTES = 4096
_CAP_IPC_LOCK = 14
_MADV_POPULATE_WRITE = 23

# Extra -> the packages that it brings.
EXTRAS = {
    "jetson": ("jtop",),
    "tune": ("torch", "safetensors", "tokenizers", "transformers"),
    "plot": ("matplotlib",),
    "serve": ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"),
}


@dataclass(frozen=True)
class Check:
    """Hold one finding: `state` is ok, off (runs without), info, or fail (the engine cannot run)."""

    name: str
    state: str
    detail: str
    advice: str = ""


def examine(path: Path) -> list[Check]:
    """Run every check; storage is checked where `path` (a file or a folder) lies.

    Raises InputError when there is no such path.
    """
    if not path.exists():
        raise InputError(f"no file or folder at {path}")
    checks = [_package(), _python(), *_native(), _model()]
    if not any(check.state == FAIL for check in checks):
        checks += [_cpu(), _repacking(), _wait_policy(), *_storage(path)]
    checks += [
        _read_ahead(path), _memlock(), _huge_pages(), _populating(), _memory(), _cgroup(),
        *_sensors(path),
    ]  # fmt: skip
    checks += [_extra(name, packages) for name, packages in EXTRAS.items()]
    return checks


def can_run(checks: list[Check]) -> bool:
    """Tell whether the engine can run at all."""
    return all(check.state != FAIL for check in checks)


# --- the installation ---


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
    """Ask the ggml library that is loaded for its version and commit."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
    answers = []
    for name in ("ggml_version", "ggml_commit"):
        function = library[name]
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


# --- computing ---


def _cpu() -> Check:
    from remoe_edge.native import llama_cpp

    said = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    pairs = [each.partition("=") for each in said.split(":", 1)[-1].split("|")]
    features = [name.strip() for name, _, value in pairs if value.strip() not in ("", "0")]
    threads = len(os.sched_getaffinity(0))
    return Check("CPU", OK, f"{threads} threads by default; {' '.join(features)}")


def _repacking() -> Check:
    """Ask llama.cpp which formats it would rearrange here, by a tiny model in each."""
    broken = amx.fault()
    if broken is not None:
        return Check("repacking", OFF, broken, amx.REMEDY)
    formats = rearranged_formats()
    if not formats:
        return Check("repacking", INFO, "llama.cpp keeps every format in file order here")
    return Check(
        "repacking", INFO,
        f"llama.cpp rearranges {', '.join(formats)} here; a streamed expert is rearranged only "
        "with --repack",
    )  # fmt: skip


def rearranged_formats() -> list[str]:
    """List the quantisations that llama.cpp rearranges for this CPU."""
    import gguf
    import numpy as np

    from remoe_edge.native import _core

    kind = gguf.GGMLQuantizationType
    n_experts, n_rows, n_columns = 2, 64, 256
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for quant in (
            kind.F16, kind.Q8_0, kind.Q4_0, kind.Q4_K, kind.Q5_K, kind.Q6_K, kind.IQ4_NL,
            kind.MXFP4,
        ):  # fmt: skip
            block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
            path = Path(folder) / f"{quant.name}.gguf"
            writer = gguf.GGUFWriter(path, "qwen3moe")
            writer.add_expert_count(n_experts)
            writer.add_expert_used_count(1)
            row = n_columns // block * block_bytes
            zeros = np.zeros((n_experts, n_rows, row), np.uint8)
            for matrix in ("up", "gate"):
                writer.add_tensor(f"blk.0.ffn_{matrix}_exps.weight", zeros, raw_dtype=quant)
            row = n_rows * 4 // block * block_bytes
            zeros = np.zeros((n_experts, n_columns // 4, row), np.uint8)
            writer.add_tensor("blk.0.ffn_down_exps.weight", zeros, raw_dtype=quant)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            model = _core.StreamedModel.open(
                str(path), backend="pread", direct=False, depth=1, repack=True
            )
            if model.repacked:
                found.append(quant.name)
    return found


def _wait_policy() -> Check:
    from remoe_edge.native import WAIT_POLICY

    if WAIT_POLICY.startswith("unknown"):
        return Check(
            "wait policy", OFF, "unknown: another package loaded the OpenMP runtime first",
            "import remoe_edge before it, or set OMP_WAIT_POLICY=passive",
        )  # fmt: skip
    if "=active" in WAIT_POLICY.lower():
        return Check(
            "wait policy", OFF, f"threads spin while they wait: {WAIT_POLICY}",
            "unset OMP_WAIT_POLICY, unless no other program needs these cores",
        )  # fmt: skip
    return Check("wait policy", OK, f"OpenMP threads wait: {WAIT_POLICY}")


# --- storage ---


@contextlib.contextmanager
def _file_on(path: Path) -> Iterator[Path]:
    """Give a file to read on the file system of `path`: itself, or a small one for a moment."""
    if path.is_file() and path.stat().st_size >= _PAGE_BYTES:
        yield path
        return
    folder = path if path.is_dir() else path.parent
    found = next((each for each in sorted(folder.glob("*.gguf")) if each.is_file()), None)
    if found is not None and found.stat().st_size >= _PAGE_BYTES:
        yield found
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".remoe-edge-") as file:
        file.write(os.urandom(16 * _PAGE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _storage(path: Path) -> list[Check]:
    folder = path if path.is_dir() else path.parent
    try:
        with _file_on(path) as file:
            return [_io_uring(file), _direct(file, folder)]
    except OSError as error:
        detail = f"not tried: no file to read in {folder} ({error.strerror})"
        advice = "name a model: remoe-edge doctor GGUF"
        return [Check(name, INFO, detail, advice) for name in ("io_uring", "O_DIRECT")]


def _io_uring(file: Path) -> Check:
    advice = (
        "pread lanes are used instead; for io_uring: Linux 5.6 or later, liburing when "
        "remoe-edge is built, and neither kernel.io_uring_disabled nor a container's seccomp "
        "profile against it"
    )
    try:
        failure = _read_a_page(file, "io_uring")
    except RemoeError as error:
        return Check("io_uring", OFF, str(error), advice)
    if failure:
        return Check("io_uring", OFF, failure, advice)
    return Check("io_uring", OK, "a page was read through it")


def _read_a_page(file: Path, backend: str) -> str:
    """Read the first page through a reader; return what went wrong, "" if nothing did."""
    from remoe_edge.native import _core

    reader = _core.Reader([str(file)], backend=backend)
    try:
        tag = reader.submit([(0, 0, _PAGE_BYTES)])
        answer = reader.drain()[tag]
    finally:
        reader.close()
    if isinstance(answer, str):
        return answer
    with file.open("rb") as plain:
        same = plain.read(_PAGE_BYTES) == answer
    return "" if same else f"it read other bytes of {file} than a plain read"


def _direct(file: Path, folder: Path) -> Check:
    from remoe_edge.native import _core

    advice = "experts are read through the page cache, which is dropped behind"
    try:
        reader = _core.Reader([str(file)], backend="pread")
    except RemoeError as error:
        return Check("O_DIRECT", OFF, str(error), advice)
    notes, direct = reader.notes, reader.direct
    reader.close()
    if direct:
        return Check("O_DIRECT", OK, f"proven by a read in {folder}")
    return Check("O_DIRECT", OFF, "; ".join(notes) or f"refused in {folder}", advice)


def _read_ahead(path: Path) -> Check:
    device = path.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for folder in (node, node.resolve().parent):  # a partition's queue is its disk's
        kib = kernel_files.number(folder / "queue" / "read_ahead_kb")
        if kib is not None:
            return Check(
                "read-ahead", INFO,
                f"{kib} KiB for {path}; it slows stock mmap when large, not remoe-edge",
            )  # fmt: skip
    return Check("read-ahead", INFO, f"no block device is known for {path}")


# --- memory ---


def _memlock() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _capable(_CAP_IPC_LOCK):
        return Check("memlock", OK, "this process may lock any amount of memory")
    if soft == resource.RLIM_INFINITY:
        return Check("memlock", OK, "no limit")
    return Check(
        "memlock", OFF, f"{mib(soft)} at most: a bigger cache is not locked, and may be swapped",
        "ulimit -l unlimited, or memlock in /etc/security/limits.conf",
    )  # fmt: skip


def _capable(bit: int) -> bool:
    for line in kernel_files.text(Path("/proc/self/status")).splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def _huge_pages() -> Check:
    setting = kernel_files.word(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    if not setting:
        return Check(
            "huge pages", OFF, "this kernel offers no transparent huge pages",
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        )  # fmt: skip
    chosen = setting.partition("[")[2].partition("]")[0]
    if chosen in ("always", "madvise"):
        return Check("huge pages", OK, f"transparent, on {chosen}")
    return Check(
        "huge pages", OFF, f"switched to {chosen}: the cache lies in {_PAGE_BYTES // 1024} KiB pages",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )  # fmt: skip


def _populating() -> Check:
    """Check for what csrc/runtime/populator.h asks of the kernel."""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        return Check(
            "pages ahead", OFF,
            f"no MADV_POPULATE_WRITE ({error.strerror}): reads wait for the pages of a filling cache",
            "Linux 5.14 or newer",
        )  # fmt: skip
    return Check("pages ahead", OK, "a filling cache has its pages made present ahead of its reads")


def _memory() -> Check:
    room = memory.available()
    state = OK if room.available_bytes >= 256 * MIB else OFF
    advice = "" if state == OK else "end other programs, or raise the limit"
    return Check("memory", state, f"{mib(room.available_bytes)} by {room.limited_by}", advice)


def _cgroup() -> Check:
    limit = memory.cgroup_limit_bytes()
    if limit is None:
        return Check("cgroup limit", INFO, "none")
    return Check("cgroup limit", INFO, f"{mib(limit)}; --cache auto stays below it")


# --- power, temperatures, pressure ---


def _sensors(path: Path, root: Path = Path("/")) -> list[Check]:
    """Ask the sampler itself what it finds, so that telemetry has what is promised here."""
    from remoe_edge.telemetry import Sampler

    with Sampler(path, root=root) as sampler:
        sample, missing, sources = sampler.latest, sampler.missing, sampler.sources
        power_source = sampler.power_source
    temperatures = {} if sample is None else sample.temperatures_c
    pressure = (
        Check("pressure", OK, "the kernel tells memory and I/O pressure (PSI)")
        if "pressure" in sources
        else Check("pressure", INFO, missing["pressure"])
    )
    return [
        _power(power_source, missing, sample.rails_w if sample else {}, root),
        _temperatures(temperatures, missing),
        pressure,
    ]


def _power(
    source: str | None, missing: dict[str, str], rails_w: dict[str, float], root: Path
) -> Check:
    is_jetson = (root / "etc/nv_tegra_release").exists()
    advice = ""
    if is_jetson and "jtop" in missing:
        advice = (
            "for EMC too: pip install 'remoe-edge[jetson]', and jtop.service (sudo jtop "
            "--install-service), which a container reaches by -v /run/jtop.sock:/run/jtop.sock"
        )
    if source is not None:
        return Check("power", OK, source, advice)
    why = "; ".join(missing[name] for name in ("jtop", "hwmon", "rapl") if name in missing)
    if rails_w:
        why = f"only parts are measured ({', '.join(rails_w)}); {why}"
    refused = missing.get("rapl", "").partition("may not be read: ")[2]
    if refused:
        return Check("power", OFF, why, refused)
    if is_jetson:
        return Check("power", OFF, why, advice or "energy is not measured")
    return Check("power", INFO, f"energy is not measured: {why}")


def _temperatures(temperatures_c: dict[str, float], missing: dict[str, str]) -> Check:
    if not temperatures_c:
        return Check("temperatures", INFO, missing.get("thermal zones", "none is told"))
    hottest = max(temperatures_c, key=lambda name: temperatures_c[name])
    n = len(temperatures_c)
    return Check(
        "temperatures", OK,
        f"{n} {'zone' if n == 1 else 'zones'}, {hottest} the hottest at {temperatures_c[hottest]:.1f} °C",
    )  # fmt: skip
