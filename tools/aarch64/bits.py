#!/usr/bin/env python3
"""Print which kernels llama.cpp has here, and a digest of what stock llama.cpp computes with each format.

    python tools/aarch64/bits.py        one line of JSON: {"cpu": ..., "digests": {"Q4_K-plain": ...}}

Two machines with the same digests compute the same bits. `repacked` lets llama.cpp rearrange weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

import stock
import tiny_moe
from aarch64.passes import FORMATS
from remoe_edge.inspect.doctor.computing import repacked_formats
from remoe_edge.native import llama_cpp

_PROMPT = [(37 * i + 11) % 200 + 5 for i in range(40)]


def main() -> None:
    """Compute and print."""
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for quant in FORMATS:
            path = tiny_moe.make(Path(folder) / f"{quant}.gguf", "qwen3moe", quant)
            for way, repack in (("plain", False), ("repacked", True)):
                result = stock.run(path, _PROMPT, 3, n_threads=2, use_extra_bufts=repack)
                digest = hashlib.sha256(result.logits.tobytes()).hexdigest()
                digests[f"{quant}-{way}"] = digest[:16]
    said = llama_cpp.llama_print_system_info().decode().strip()
    print(json.dumps({"cpu": said, "repacked": repacked_formats(), "digests": digests}))


if __name__ == "__main__":
    main()
