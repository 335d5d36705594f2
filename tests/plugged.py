"""Programs of llama.cpp with the plug-in: here a Python process with the stock llama_cpp.

What is loaded into it is what `remoe-edge plugin run` would load into llama-server. Tests skip where
no plug-in was built for the installed llama-cpp-python.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import stock
from remoe_edge.errors import RemoeError
from remoe_edge.plugin import builds, libraries
from remoe_edge.plugin.environment import environment

PROMPT = [(37 * i + 11) % 200 + 5 for i in range(40)]
# The matrix: the text and bits of each with each format and budget are those of llama.cpp alone.
ARCHS = ("qwen3moe", "olmoe", "deepseek2", "gpt-oss", "llama", "glm4moe")
FORMATS = ("Q4_K", "Q8_0", "MXFP4")
# A share below the floor is the floor: a share asks for as much as there is.
BUDGETS = {"100%": "100%", "30%": "30%", "floor": "0.001%"}
N_GREEDY = 128

# At the beginning of every script: a model by its path, a context of it, and what it computes; and work
# that several threads do at once, each with its arguments.
PRELUDE = """
import sys
import threading
import llama_cpp as lib
import numpy as np

def load(path, **params):
    made = lib.llama_model_default_params()
    made.n_gpu_layers = 0
    for name, value in params.items():
        setattr(made, name, value)
    return lib.llama_model_load_from_file(str(path).encode(), made)

def context(model, **params):
    made = lib.llama_context_default_params()
    made.n_ctx = made.n_batch = 256
    made.n_threads = made.n_threads_batch = 2
    for name, value in params.items():
        setattr(made, name, value)
    return lib.llama_init_from_model(model, made)

def decode(ctx, tokens):
    array = (lib.llama_token * len(tokens))(*tokens)
    return lib.llama_decode(ctx, lib.llama_batch_get_one(array, len(tokens)))

def logits(ctx, model):
    n = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    return np.array(np.ctypeslib.as_array(lib.llama_get_logits_ith(ctx, -1), (n,)))

def bits(ctx, model):
    return logits(ctx, model).tobytes().hex()

def forget(ctx):
    lib.llama_memory_clear(lib.llama_get_memory(ctx), True)

def at_once(work, *arguments):
    threads = [threading.Thread(target=work, args=each) for each in arguments]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
"""


@functools.cache
def added(**settings: str) -> dict[str, str]:
    """Make what a program's environment needs; skip the test where there is no plug-in."""
    try:
        ggml = libraries.of_package()
        builds.require_core(ggml, None, "llama-cpp-python")
        entry = builds.entry(None)
    except (RemoeError, OSError) as error:
        pytest.skip(f"no plug-in for this llama.cpp: {error}")
    made = environment(entry, None, {"status": "off", **settings}, {})
    return {**made, **stock.ENVIRONMENT}


def process(**settings: str) -> stock.Process:
    """Make a process that computes as stock.run() does, with the plug-in."""
    return stock.Process(added(**settings))


def script(
    text: str, *arguments: object, plugged: bool = True, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a program's process; it must end by itself."""
    more = added(**settings) if plugged else stock.ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(text), *map(str, arguments)],
        env={**os.environ, **more}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Give what the plug-in said on standard error."""
    return "\n".join(line for line in done.stderr.splitlines() if line.startswith("remoe-edge: "))


def experts_last(source: Path, target: Path) -> int:
    """Write a model again with its experts at the end of the file; return where they begin."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    tensors = sorted(reader.tensors, key=lambda tensor: "_exps.weight" in tensor.name)
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = GGUFReader(target)
    return min(int(each.data_offset) for each in written.tensors if "_exps.weight" in each.name)
