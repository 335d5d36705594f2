"""What llama.cpp would abort over is refused by key or tensor, by `info` and by the engine alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_dense
import tiny_moe
from fuzz.header import BOOL, F32, I32, STRING, U32, Header, Key, Scalar, parse, write
from fuzz_gguf import fuzz
from remoe_edge import Engine
from remoe_edge.errors import ModelError, RemoeError, UnsupportedError
from remoe_edge.files.models import shipped_model
from remoe_edge.inspect.info import describe
from remoe_edge.native import _core

Change = Callable[[Header], None]
TOKENS = "tokenizer.ggml.tokens"


def key(name: str, kind: int, *values: Scalar) -> Change:
    """Set a key, "." at its start standing for the architecture; several values make an array."""

    def change(header: Header) -> None:
        full = name.encode()
        full = header.architecture + full if name.startswith(".") else full
        header.keys = [each for each in header.keys if each.name != full]
        header.keys.append(Key(full, kind, list(values), len(values) > 1))

    return change


def without(name: str) -> Change:
    def change(header: Header) -> None:
        full = (header.architecture if name.startswith(".") else b"") + name.encode()
        header.keys = [each for each in header.keys if each.name != full]
        header.tensors = [each for each in header.tensors if each.name != full]

    return change


def token(number: int, text: bytes) -> Change:
    def change(header: Header) -> None:
        found = header.find(TOKENS.encode())
        assert found is not None
        found.values[number] = text

    return change


def cut(name: str) -> Change:
    def change(header: Header) -> None:
        found = header.find(name.encode())
        assert found is not None
        found.values.pop()

    return change


def tensor_type(name: str, kind: int) -> Change:
    def change(header: Header) -> None:
        next(each for each in header.tensors if each.name == name.encode()).type = kind

    return change


def changed(folder: Path, arch: str, *changes: Change) -> Path:
    header, data = parse(tiny_moe.make(folder / "base.gguf", arch, "Q8_0").read_bytes())
    for change in changes:
        change(header)
    path = folder / "changed.gguf"
    path.write_bytes(write(header, data))
    return path


def refusal(path: Path) -> str:
    """Return why a file is refused; the check, info and the engine say the same."""
    said = []
    for look in (
        lambda: _core.ModelFile.open(path).check(),
        lambda: describe(path),
        lambda: Engine(path, cache="100%", publish=False).close(),
    ):
        with pytest.raises((ModelError, UnsupportedError)) as refused:
            look()
        said.append(str(refused.value))
    assert len(set(said)) == 1, said
    assert "\n" not in said[0]
    return said[0]


@pytest.mark.parametrize(
    ("arch", "change", "words"),
    [
        ("qwen3moe", without(".block_count"), "block_count"),
        ("qwen3moe", without(".context_length"), "context_length"),
        ("qwen3moe", key(".context_length", U32, 2**31 - 1), "context_length"),
        ("qwen3next", without("blk.0.attn_qkv.weight"), "blk.0.ssm_in.weight"),
        ("qwen3moe", key(".block_count", U32, 513), "block_count"),
        ("qwen3moe", key(".block_count", U32, 2), "blk.2."),
        ("qwen3moe", key(".nextn_predict_layers", U32, 3), "nextn_predict_layers"),
        ("qwen3moe", key(".attention.head_count", U32, 4, 4), "has 2 elements"),
        ("qwen3moe", key(".expert_count", U32, 1025), "1024"),
        ("qwen3moe", key(".expert_count", U32, 9), "10 experts"),
        ("qwen3moe", without(".expert_count"), "expert_count"),
        ("qwen3moe", key(".expert_used_count", U32, 64), "64 of 10 experts"),
        ("qwen3moe", key(".expert_used_count", U32, 0), "expert_used_count"),
        ("qwen3moe", key(".expert_used_count", U32, 2, 0, 2), "block 1"),
        ("glm4moe", key(".expert_used_count", U32, 2, 8, 2), "as many in all"),
        ("qwen3moe", key(".expert_group_count", U32, 10), "expert_group_count"),
        ("qwen3moe", key(".expert_group_count", U32, 3), "does not divide"),
        ("qwen3moe", key(".expert_group_count", U32, 2), "expert_group_used_count"),
        ("smallthinker", without(".expert_gating_func"), "expert_gating_func"),
        ("glm4moe", key(".expert_gating_func", U32, 9), "expert_gating_func"),
        ("qwen3moe", key(".attention.head_count", U32, 2**32 - 2), "head_count"),
        ("qwen3moe", key(".attention.head_count_kv", U32, 3), "does not divide"),
        ("qwen3moe", key(".attention.head_count_kv", U32, 1), "rows"),
        ("qwen3moe", key(".attention.key_length", U32, 16), "key_length"),
        ("qwen3moe", key(".rope.dimension_count", U32, 16), "rope.dimension_count"),
        ("minimax-m2", key(".rope.dimension_count", U32, 31), "even"),
        ("qwen3moe", key(".rope.scaling.type", STRING, b"bent"), "rope.scaling.type"),
        ("qwen35moe", key(".rope.dimension_sections", I32, 64, 64, 64, 0), "dimension_sections"),
        ("qwen3moe", key(".attention.layer_norm_rms_epsilon", F32, math.nan), "epsilon"),
        ("qwen3moe", key(".attention.layer_norm_rms_epsilon", F32, -1.0), "epsilon"),
        ("deepseek2", without(".attention.key_length_mla"), "key_length_mla"),
        ("deepseek2", key(".attention.head_count_kv", U32, 4), "latent"),
        ("deepseek2", without(".attention.key_length"), "attention.key_length"),
        ("cohere2moe", key(".nextn_predict_layers", U32, 2), "no layer with a sliding window"),
        ("afmoe", without(".attention.sliding_window"), "missing or 0"),
        ("llama4", key(".attention.sliding_window", U32, 0), "sliding_window"),
        ("afmoe", key(".attention.sliding_window", U32, 0), "sliding_window"),
        ("afmoe", key(".attention.sliding_window", U32, 2**31), "sliding_window"),
        ("gemma4", key(".attention.sliding_window_pattern", BOOL, 0, 0, 0), "window_pattern"),
        ("gpt-oss", key(".attention.sliding_window_pattern", U32, 1), "window_pattern"),
        ("phimoe", key(".rope.dimension_count", U32, 0), "rope.dimension_count"),
        ("qwen35moe", key(".rope.dimension_sections", I32, 0, 0, 0, 0), "dimension_sections"),
        ("hy_v3", without("blk.1.ffn_up_shexp.weight"), "blk.1.ffn_up_shexp.weight"),
        ("qwen3next", key(".full_attention_interval", U32, 0), "full_attention_interval"),
        ("qwen3next", key(".ssm.state_size", U32, 16), "ssm.state_size"),
        ("granitehybrid", key(".ssm.inner_size", U32, 128), "ssm.inner_size"),
        ("granitehybrid", without("blk.0.ssm_conv1d.bias"), "blk.0.ssm_conv1d.bias"),
        ("qwen35moe", without("blk.0.attn_qkv.weight"), "blk.0.attn_qkv.weight"),
        ("qwen3next", without("blk.0.attn_gate.weight"), "blk.0.attn_gate.weight"),
        ("lfm2moe", key(".shortconv.l_cache", U32, 1), "shortconv.l_cache"),
        ("qwen3moe", without("tokenizer.ggml.model"), "tokenizer.ggml.model"),
        ("qwen3moe", key("tokenizer.ggml.model", STRING, b"none"), "vocabulary"),
        ("qwen3moe", key("tokenizer.ggml.model", STRING, b"llama"), "byte tokens"),
        ("qwen3moe", without(TOKENS), TOKENS),
        ("qwen3moe", token(7, b"a"), "twice"),
        ("qwen3moe", token(7, b"a\0b"), "twice"),  # a C string ends there
        ("qwen3moe", token(7, b"[EMPTY_9]"), "token_embd"),  # not alone: see below
        ("qwen3moe", cut("tokenizer.ggml.token_type"), "token_type"),
        ("qwen3moe", cut(TOKENS), "token_embd.weight"),
        ("qwen3moe", tensor_type("blk.1.attn_norm.weight", 26), "attn_norm.weight"),
        ("qwen3moe", tensor_type("blk.1.attn_q.weight", 24), "attn_q.weight"),
        ("qwen3moe", key("general.architecture", STRING, b"qwen3moe\0"), "general.architecture"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(arch: str, change: Change, words: str, tmp_path: Path) -> None:
    changes = [change]
    if words == "token_embd":
        changes = [token(9, b""), change]  # which llama.cpp calls [EMPTY_9] too
        words = "twice"
    path = changed(tmp_path, arch, *changes)
    said = refusal(path)
    assert str(path) in said
    assert words in said


def test_a_prompt_that_would_begin_with_no_token(tmp_path: Path) -> None:
    begins = key("tokenizer.ggml.add_bos_token", BOOL, True)
    runs = changed(tmp_path, "qwen3moe", begins)
    _core.ModelFile.open(runs).check()
    path = changed(tmp_path, "qwen3moe", begins, key("tokenizer.ggml.bos_token_id", U32, 9999))
    _core.ModelFile.open(path).check()  # the default of this tokenizer, 11, is there


@pytest.mark.parametrize("arch", tiny_moe.ARCHS)
def test_every_architecture_passes(arch: str, tmp_path: Path) -> None:
    for quant in ("Q8_0", "F32", "Q4_K", "MXFP4"):
        _core.ModelFile.open(tiny_moe.make(tmp_path / "m.gguf", arch, quant)).check()
    if arch in tiny_moe.MERGED_ARCHS:
        path = tiny_moe.make(tmp_path / "merged.gguf", arch, "Q8_0", merged_gate_up=True)
        _core.ModelFile.open(path).check()
    if arch in tiny_moe.SCALED_ARCHS:
        path = tiny_moe.make(tmp_path / "scaled.gguf", arch, "Q8_0", expert_scales=True)
        _core.ModelFile.open(path).check()


def test_dense_models_and_the_shipped_one_pass(tmp_path: Path) -> None:
    _core.ModelFile.open(tiny_dense.make(tmp_path / "dense.gguf")).check()
    _core.ModelFile.open(shipped_model()).check()


@pytest.mark.parametrize("n_experts", [896, 1024])
def test_as_many_experts_as_llama_cpp_takes(n_experts: int, tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0", n_expert=n_experts, n_layer=1)
    with Engine(path, cache="100%", publish=False) as engine:
        assert engine.evaluate([1, 2, 3]).std() > 0


def test_metadata_that_is_no_model_is_no_overlay_either(tmp_path: Path) -> None:
    path = changed(tmp_path, "qwen3moe", key("remoe_edge.overlay.version", U32, 1))
    with pytest.raises(RemoeError):
        Engine(path, routers=path, cache="100%", publish=False)


def test_fuzz_200_headers(tmp_path: Path) -> None:
    figures = fuzz(tmp_path, 200, seed=20)
    assert figures.inputs == 200
    assert figures.ends["answered"] > 20
    assert figures.ends["refused"] > 20
    assert figures.clean, (figures.deaths, figures.bugs)


@pytest.mark.slow
def test_fuzz_10000_headers(tmp_path: Path) -> None:
    figures = fuzz(tmp_path, 10_000, seed=21)
    assert figures.clean, (figures.deaths, figures.bugs)
