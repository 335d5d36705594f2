"""The tiny models themselves: stock llama.cpp runs them, and their experts matter."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

import stock
import tiny_moe
from random_moe import blocks, vocabulary

PROMPT = (5, 66, 70, 100, 30, 40, 90)
LONG_PROMPT = tuple((7 * i * i + 13 * i) % tiny_moe.N_VOCAB for i in range(600))
EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|down|up|gate_up)_exps\.weight")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def tiny(folder: Path, arch: str, quant: str) -> Path:
    path = folder / f"{arch}-{quant}.gguf"
    return path if path.exists() else tiny_moe.make(path, arch, quant)


def expert_ranges(path: Path) -> dict[str, tuple[int, int, int]]:
    """Return offset, bytes and number of experts of every expert tensor in `path`."""
    return {
        tensor.name: (int(tensor.data_offset), int(tensor.n_bytes), int(tensor.shape[-1]))
        for tensor in GGUFReader(path).tensors
        if EXPERTS.fullmatch(tensor.name)
    }


def zeroed(path: Path, offset: int, n_bytes: int) -> Path:
    """Return a copy of `path` with a range of bytes zeroed, which every format decodes."""
    copy = path.with_name(f"zeroed-{path.name}")
    shutil.copy(path, copy)
    with copy.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(n_bytes))
    return copy


@pytest.mark.parametrize("quant", tiny_moe.QUANTS)
@pytest.mark.parametrize("arch", tiny_moe.ARCHS)
def test_stock_runs_every_architecture_in_every_format(models: Path, arch: str, quant: str) -> None:
    path = tiny(models, arch, quant)
    assert path.stat().st_size < 6 << 20
    stored = {t.tensor_type.name for t in GGUFReader(path).tensors if EXPERTS.fullmatch(t.name)}
    assert stored == {quant}
    result = stock.run(path, PROMPT, n_greedy=4)
    assert result.logits.shape == (5, tiny_moe.N_VOCAB)
    assert np.isfinite(result.logits).all()
    assert 0.3 < result.logits.std() < 4.0
    # Positions differ: the model is no constant function of its input.
    assert len({row.tobytes() for row in result.logits}) == 5


@pytest.mark.parametrize("arch", tiny_moe.ARCHS)
def test_every_expert_tensor_matters(models: Path, arch: str) -> None:
    path = tiny(models, arch, "Q4_0")
    before = stock.run(path, PROMPT, n_greedy=0).logits
    ranges = expert_ranges(path)
    assert len(ranges) >= 4
    for name, (offset, n_bytes, _) in ranges.items():
        after = stock.run(zeroed(path, offset, n_bytes), PROMPT, n_greedy=0).logits
        assert np.isfinite(after).all(), name
        assert np.abs(after - before).max() > 0.05, name


def test_every_expert_is_chosen_by_some_token(models: Path) -> None:
    path = tiny(models, "qwen3moe", "Q8_0")
    before = stock.run(path, LONG_PROMPT, n_greedy=0).logits
    # In the first layer, so that later ones can carry what any token's expert changed.
    offset, n_bytes, n_expert = expert_ranges(path)["blk.0.ffn_down_exps.weight"]
    for expert in range(n_expert):
        part = n_bytes // n_expert
        after = stock.run(zeroed(path, offset + expert * part, part), LONG_PROMPT, n_greedy=0)
        assert not np.array_equal(after.logits, before), expert


@pytest.mark.parametrize("n_prompt", [1, 7, 600])
@pytest.mark.parametrize("use_extra_bufts", [True, False])
def test_stock_is_deterministic(models: Path, n_prompt: int, use_extra_bufts: bool) -> None:
    path = tiny(models, "deepseek2", "Q4_K")
    prompt = LONG_PROMPT[:n_prompt]
    first = stock.run(path, prompt, use_extra_bufts=use_extra_bufts)
    again = stock.run(path, prompt, use_extra_bufts=use_extra_bufts, fresh=True)
    assert first.logits.tobytes() == again.logits.tobytes()
    assert first.tokens == again.tokens
    assert first.tokens == tuple(first.logits.argmax(axis=1)[:-1].tolist())


def test_stock_remembers_a_run(models: Path) -> None:
    path = tiny(models, "olmoe", "Q4_0")
    assert stock.run(path, PROMPT) is stock.run(path, PROMPT)
    assert stock.run(path, PROMPT) is not stock.run(path, PROMPT, n_threads=1)


def test_stock_reports_a_refused_model_and_goes_on(models: Path) -> None:
    bad = models / "bad.gguf"
    bad.write_bytes(b"GGUF but not really")
    with pytest.raises(stock.StockError, match="refused the model"):
        stock.run(bad, PROMPT)
    assert stock.run(tiny(models, "olmoe", "Q4_0"), PROMPT, fresh=True).tokens


def test_same_arguments_make_the_same_bytes(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        path = tiny_moe.make(tmp_path / name, "qwen2moe", "Q5_K", seed=seed)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest("a.gguf", 1) == digest("b.gguf", 1)
    assert digest("a.gguf", 1) != digest("b.gguf", 2)


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss"])
def test_shards_compute_what_one_file_computes(models: Path, tmp_path: Path, arch: str) -> None:
    whole = tiny(models, arch, "Q4_0")
    first = tiny_moe.make(tmp_path / "m.gguf", arch, "Q4_0", n_split=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert first.name == names[0]
    n_tensors = len(GGUFReader(whole).tensors)
    for index, name in enumerate(names):
        fields = GGUFReader(tmp_path / name).fields
        assert fields["split.no"].contents() == index
        assert fields["split.count"].contents() == 3
        assert fields["split.tensors.count"].contents() == n_tensors
        assert ("general.architecture" in fields) == (index == 0)
    expected = stock.run(whole, PROMPT)
    assert stock.run(first, PROMPT).logits.tobytes() == expected.logits.tobytes()


@pytest.mark.parametrize("arch", tiny_moe.MERGED_ARCHS)
@pytest.mark.parametrize("quant", ["F16", "Q4_0", "Q4_K"])
def test_merged_gate_up_experts_load_and_matter(tmp_path: Path, arch: str, quant: str) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", arch, quant, merged_gate_up=True)
    ranges = expert_ranges(path)
    assert {name.split(".")[2] for name in ranges} == {"ffn_gate_up_exps", "ffn_down_exps"}
    before = stock.run(path, PROMPT, n_greedy=0).logits
    for name, (offset, n_bytes, _) in ranges.items():
        after = stock.run(zeroed(path, offset, n_bytes), PROMPT, n_greedy=0).logits
        assert np.abs(after - before).max() > 0.05, name


@pytest.mark.parametrize("arch", tiny_moe.SCALED_ARCHS)
def test_expert_scales_load_and_matter(models: Path, tmp_path: Path, arch: str) -> None:
    scaled = tiny_moe.make(tmp_path / "m.gguf", arch, "Q4_0", expert_scales=True)
    scales = [t for t in GGUFReader(scaled).tensors if t.name.endswith("_exps.scale")]
    assert len(scales) == len(expert_ranges(scaled))
    before = stock.run(scaled, PROMPT, n_greedy=0).logits
    for tensor in scales:
        offset, n_bytes = int(tensor.data_offset), int(tensor.n_bytes)
        after = stock.run(zeroed(scaled, offset, n_bytes), PROMPT, n_greedy=0).logits
        assert np.abs(after - before).max() > 0.05, tensor.name


def test_what_llama_cpp_does_not_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no merged gate and up experts for olmoe"):
        tiny_moe.make(tmp_path / "m.gguf", "olmoe", "F16", merged_gate_up=True)
    with pytest.raises(ValueError, match="no expert scales for olmoe"):
        tiny_moe.make(tmp_path / "m.gguf", "olmoe", "F16", expert_scales=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quant", blocks.FORMATS)
def test_random_blocks_decode_to_the_asked_deviation(quant: GGMLQuantizationType) -> None:
    n_elements = 256 * 512
    data = blocks.random_bytes(np.random.default_rng(3), n_elements, quant, 0.02)
    assert data.nbytes == blocks.byte_size(n_elements, quant)
    values = quants.dequantize(data, quant)
    assert np.isfinite(values).all()
    assert np.std(values) == pytest.approx(0.02, rel=0.05)
    assert abs(np.mean(values)) < 0.001
    assert np.abs(values).max() < 0.2


def test_a_row_too_short_for_a_format_falls_back_as_llama_cpp_does() -> None:
    Q = GGMLQuantizationType
    assert blocks.format_for(1408, Q.Q4_K) == Q.Q5_0
    assert blocks.format_for(1408, Q.Q5_K) == Q.Q5_1
    assert blocks.format_for(1408, Q.Q6_K) == Q.Q8_0
    assert blocks.format_for(2048, Q.Q4_K) == Q.Q4_K
    assert blocks.format_for(48, Q.Q8_0) == Q.F16


def test_the_tokenizer_keeps_any_text(models: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tiny(models, "qwen3moe", "Q4_0")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in ("able and bad", "Ünï©ode → 日本", "tabs\tand\nlines  "):
        tokens = model.tokenize(text.encode(), add_bos=False, special=False)
        assert model.detokenize(tokens).decode() == text
    turn = model.tokenize(b"<|im_start|>user", add_bos=False, special=True)
    assert turn[0] == 256 + vocabulary.SPECIAL.index(vocabulary.TURN_START)
    assert model.token_eos() == 256 + vocabulary.SPECIAL.index(vocabulary.TURN_END)
    assert model.metadata["tokenizer.chat_template"] == vocabulary.CHAT_TEMPLATE
