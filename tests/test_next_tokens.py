"""The exported Hugging Face folder and the GGUF hold the same tokens for the likeliest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra; the tools that train need it")
pytest.importorskip("tokenizers", reason="tokenizers is an extra; the tools that train need it")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is an extra")
np = pytest.importorskip("numpy")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "small_model"))

import next_tokens  # noqa: E402
from data.tokens import train_bpe  # noqa: E402
from moe.config import MoeConfig  # noqa: E402
from moe.gguf_file import write_gguf  # noqa: E402
from moe.hf_folder import write_hf  # noqa: E402
from moe.model import MoeModel  # noqa: E402

SHAPE = MoeConfig(
    vocab=300, embed=64, layers=3, heads=2, kv_heads=1, head_dim=32, experts=8, top_k=2,
    expert_ffn=32, context=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MoeModel:
    """Give a model with random weights; its norms and routers are no numbers of F16."""
    made = MoeModel(SHAPE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.1 * drawn if parameter.dim() == 1 else drawn * scale)
    return made.eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    train_bpe(["the sea was calm and old ships lay in a harbour near my town. "] * 40, 300).save(
        str(path)
    )
    return path


@pytest.fixture(scope="module")
def files(
    model: MoeModel, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("files")
    write_gguf(model, tokenizer, out / "start.gguf", "q8_0", 1)
    return next_tokens.written(out / "start.gguf", None, tokenizer, out, "float32")


WINDOWS = np.random.default_rng(5).integers(3, 300, (6, 48))


def test_transformers_chooses_what_llama_cpp_chooses(files: tuple[Path, Path]) -> None:
    pytest.importorskip("transformers")
    reference = next_tokens.llama_cpp_choices(files[0], WINDOWS, "F32")
    found = next_tokens.transformers_choices(*files, WINDOWS)
    figures = next_tokens.compared(reference, found)
    assert figures["positions"] == WINDOWS.size
    assert figures["same"] >= 0.999, figures
    assert len(set(reference[0].tolist())) > 20  # no model that says one token to everything
    np.testing.assert_allclose(found[1], reference[1], atol=1e-3)


@pytest.mark.slow
def test_vllm_chooses_what_llama_cpp_chooses(files: tuple[Path, Path]) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed (docs/vllm.md)")
    reference = next_tokens.alone("f32-cache", *files, WINDOWS)
    figures = next_tokens.compared(reference, next_tokens.alone("vllm", *files, WINDOWS))
    assert figures["same"] >= 0.999, figures


def test_a_folder_in_float16_keeps_routers_and_norms(
    model: MoeModel, tokenizer: Path, tmp_path: Path
) -> None:
    """Rounded routers change which experts are used; the GGUF has them in F32 too."""
    write_hf(model, tokenizer, tmp_path, torch.float16)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    weights = model.state_dict()
    for layer in range(SHAPE.layers):
        prefix = f"model.layers.{layer}."
        router = tensors[prefix + "mlp.gate.weight"]
        assert torch.equal(router, weights[f"blocks.{layer}.experts.router.weight"])
        norm = tensors[prefix + "input_layernorm.weight"]
        assert torch.equal(norm, weights[f"blocks.{layer}.attention_norm.weight"])
        assert tensors[prefix + "self_attn.q_proj.weight"].dtype == torch.float16


def test_what_differs_is_counted_and_how_nearly() -> None:
    reference = np.array([1, 2, 3, 4]), np.array([0.5, 0.25, 2.0, 1.0], np.float32)
    found = np.array([1, 7, 9, 4]), np.zeros(4, np.float32)
    assert next_tokens.compared(reference, found) == {
        "positions": 4, "differ": 2, "same": 0.5, "widest_gaps": [2.0, 0.25],
    }  # fmt: skip


def test_texts_are_cut_into_windows(tokenizer: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the sea was calm<|endoftext|>\n" * 40)
    windows = next_tokens.cut([text, text], tokenizer, 16, 3)
    assert windows.shape == (6, 16)
    assert (windows[:3] == windows[3:]).all()
    with pytest.raises(SystemExit, match="windows of 16 tokens"):
        next_tokens.cut([text], tokenizer, 16, 10_000)
