"""How this machine computes: processor, AMX, GPUs, repacking, and how threads wait."""

from __future__ import annotations

import tempfile
from pathlib import Path

from remoe_edge import amx
from remoe_edge.errors import UnsupportedError
from remoe_edge.inspect.doctor import gpu
from remoe_edge.inspect.doctor.check import INFO, OFF, OK, Check
from remoe_edge.machine.processors import default_threads


def checks() -> list[Check]:
    """Check processor, GPUs, AMX, repacking and the wait policy."""
    return [_cpu(), gpu.check(), _amx(), _repacking(), _wait_policy(), _openssl()]


def _openssl() -> Check:
    """Look for the library that encrypts connections to other machines."""
    from remoe_edge.native import _core

    try:
        return Check("OpenSSL", OK, f"{_core.tls_library()}: workers on other machines can be used")
    except UnsupportedError as error:
        return Check(
            "OpenSSL", INFO, f"{error}; workers on this machine work without",
            "apt install libssl3",
        )  # fmt: skip


def _cpu() -> Check:
    from remoe_edge.native import llama_cpp

    said = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    pairs = [each.partition("=") for each in said.split(":", 1)[-1].split("|")]
    features = [name.strip() for name, _, value in pairs if value.strip() not in ("", "0")]
    threads = default_threads()
    return Check("CPU", OK, f"{threads} threads by default; {' '.join(features)}")


def _amx() -> Check:
    broken = amx.compiler_fault()
    if broken is None:
        return Check("AMX", INFO, "nothing to avoid")
    still = amx.fault()
    if still is not None:
        return Check("AMX", OFF, still, amx.REMEDY)
    return Check("AMX", OK, f"avoided, nothing to do: {broken}")


def _repacking() -> Check:
    """Ask llama.cpp which formats it would repack here, by a tiny model in each."""
    formats = repacked_formats()
    if not formats:
        return Check("repacking", INFO, "llama.cpp keeps every format in file order here")
    return Check(
        "repacking", INFO,
        f"llama.cpp repacks {', '.join(formats)} here; a streamed expert is repacked only with "
        "--repack",
    )  # fmt: skip


def repacked_formats() -> list[str]:
    """List the quantisations that llama.cpp repacks for this CPU."""
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
