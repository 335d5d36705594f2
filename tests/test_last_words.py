"""Where llama.cpp ends the process, a line says so; where it refuses a model, its reason is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny_dense
import tiny_moe
from fuzz.header import U32, Key, parse, write
from remoe_edge import Engine
from remoe_edge.errors import ModelError
from remoe_edge.native import _core

# The check is switched off, as if this package did not know what llama.cpp asserts on.
UNCHECKED = """
import sys
from remoe_edge import Engine
from remoe_edge.native import _core
_core.ModelFile.check = lambda self: None
Engine(sys.argv[1], stream=sys.argv[2] == "streamed", cache="100%", n_ctx=64, publish=False)
"""
THROWN = """
import sys
from remoe_edge import Engine
from remoe_edge.native import llama_cpp
engine = Engine(sys.argv[1], cache="100%", n_ctx=64, publish=False)
llama_cpp.llama_vocab_get_text(engine.llama._model.vocab, 10**6)
"""
AFTERWARDS = """
import ctypes, sys
from pathlib import Path
from remoe_edge import Engine
from remoe_edge.native import llama_cpp
mine = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda text: print("mine:", text, flush=True))
base = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
base.ggml_set_abort_callback(mine)
with Engine(sys.argv[1], cache="100%", n_ctx=64, publish=False) as one:
    with Engine(sys.argv[1], cache="100%", n_ctx=64, publish=False) as two:
        pass
base.ggml_abort(b"/there/some.cpp", 7, b"no more")
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def asserted_on(folder: Path) -> Path:
    header, data = parse(tiny_moe.make(folder / "base.gguf", "cohere2moe", "Q8_0").read_bytes())
    header.keys.append(Key(b"cohere2moe.nextn_predict_layers", U32, [2]))
    path = folder / "asserted.gguf"
    path.write_bytes(write(header, data))
    return path


@pytest.mark.parametrize("how", ["streamed", "whole"])
def test_an_assertion_of_llama_cpp_is_named_with_the_model(tmp_path: Path, how: str) -> None:
    path = asserted_on(tmp_path)
    done = run(UNCHECKED, path, how)
    assert done.returncode == -6, done
    said = [line for line in done.stderr.splitlines() if "llama.cpp aborted" in line]
    assert len(said) == 1, done.stderr
    assert str(path) in said[0]
    assert "llama-model.cpp:" in said[0]
    assert "hparams.is_swa_any()" in said[0]


def test_an_exception_that_nothing_catches_is_named_with_the_model(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    done = run(THROWN, path)
    assert done.returncode == -6, done
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, done.stderr
    assert str(path) in said[0]


def test_a_callback_of_somebody_else_comes_back(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    done = run(AFTERWARDS, path)
    assert done.returncode == -6, done
    assert "mine:" in done.stdout
    assert "llama.cpp aborted" not in done.stderr


def test_why_llama_cpp_refused_a_model_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is loaded whole goes through llama-cpp-python, which says only that it failed."""
    monkeypatch.setattr(_core.ModelFile, "check", lambda self: None)
    for path in (
        tiny_dense.make(tmp_path / "d.gguf"),
        tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0"),
    ):
        header, data = parse(path.read_bytes())
        gone = next(each for each in header.tensors if each.name.endswith(b"blk.1.attn_q.weight"))
        gone.name = b"blk.1.attn_x.weight"
        path.write_bytes(write(header, data))
        for stream in (True, False):
            with pytest.raises(ModelError, match=r"blk\.1\.attn_q\.weight") as refused:
                Engine(path, cache="100%", stream=stream, publish=False)
            assert "\n" not in str(refused.value)
            assert str(path) in str(refused.value)
