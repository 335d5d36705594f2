"""llama.cpp's log: heard, and outliving whoever asked for it."""

from __future__ import annotations

import gc
import subprocess
import sys

from remoe_edge.engine.llama import Buffers
from remoe_edge.engine.llama_log import log_to

# llama.cpp points to the log of an object that is gone; loading nothing makes it write there.
FORGOTTEN = """
import gc, sys
from remoe_edge.engine.llama_log import log_to
class Listener:
    def __init__(self):
        log_to(self.hear)
    def hear(self, level, line):
        print("heard", line.strip())
Listener()
gc.collect()
churn = [bytes(range(256)) * 16 for _ in range(10_000)]
import llama_cpp
llama_cpp.llama_model_load_from_file(b"/nonexistent.gguf", llama_cpp.llama_model_default_params())
"""


def test_a_forgotten_listener_still_hears() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "heard" in done.stdout
    assert "nonexistent" in done.stdout


def test_a_line_with_a_value_of_the_file_in_it_ends() -> None:
    """llama.cpp prints an unknown tokenizer.ggml.pre, which may be of any length."""
    buffers = Buffers()
    buffers.read(2, "x" * 1_000_000)
    buffers.read(4, "why " + "y" * 1_000_000)
    buffers.read(2, "llama_kv_cache:        CPU KV buffer size =     0.50 MiB")
    assert buffers.n_bytes == {"KV": 2**19}
    assert buffers.errors == []


def test_the_packages_logger_comes_back() -> None:
    import llama_cpp

    heard: list[str] = []
    log_to(lambda level, line: heard.append(line))
    try:
        params = llama_cpp.llama_model_default_params()
        assert not llama_cpp.llama_model_load_from_file(b"/nonexistent.gguf", params)
        assert heard
    finally:
        log_to(None)
    gc.collect()
    before = len(heard)
    assert not llama_cpp.llama_model_load_from_file(b"/nonexistent.gguf", params)
    assert len(heard) == before
