"""The small model's tools end to end, on a model of a few thousand weights."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra; the tools that train need it")
pytest.importorskip("tokenizers", reason="tokenizers is an extra; the tools that train need it")
np = pytest.importorskip("numpy")

TOOLS = Path(__file__).resolve().parents[1] / "tools" / "small_model"
sys.path.insert(0, str(TOOLS))

import export_moe  # noqa: E402
import train_moe  # noqa: E402
from data.document import Conversation  # noqa: E402
from data.tokens import encode_conversation, encode_documents, pack_rows, train_bpe  # noqa: E402
from moe.config import MoeConfig  # noqa: E402
from moe.dispatch import plan  # noqa: E402
from moe.gguf_file import read_gguf  # noqa: E402
from moe.model import Experts, MoeModel  # noqa: E402
from moe.ngram import KneserNey  # noqa: E402
from moe.passes import Passes  # noqa: E402

SHAPE = [
    "--vocab",
    "300",
    "--embed",
    "64",
    "--layers",
    "2",
    "--heads",
    "2",
    "--kv-heads",
    "1",
    "--head-dim",
    "32",
    "--experts",
    "8",
    "--top-k",
    "2",
    "--expert-ffn",
    "32",
    "--context",
    "32",
]
TINY = MoeConfig(
    vocab=300,
    embed=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    experts=8,
    top_k=2,
    expert_ffn=32,
    context=32,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train").mkdir()
    rng = np.random.default_rng(0)
    words = [
        "the",
        "sea",
        "was",
        "calm",
        "and",
        "old",
        "ships",
        "lay",
        "in",
        "a",
        "harbour",
        "near",
        "stone",
        "walls",
        "of",
        "my",
        "town",
    ]
    texts = [" ".join(rng.choice(words, 60)) + ". It's 12 o'clock!\n" for _ in range(60)]
    tokenizer = train_bpe(texts, 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    stream = np.concatenate(list(encode_documents(tokenizer, texts)))
    for domain in ("passages", "prose"):
        stream.astype("<u2").tofile(folder / "train" / f"{domain}.bin")
    talk = Conversation("t", "test", (("Where is the sea?", "The sea was calm."),))
    rows = pack_rows([encode_conversation(tokenizer, talk)] * 40, 33, 0)
    rows.astype("<u2").tofile(folder / "chat.bin")
    (folder / "manifest.json").write_text(json.dumps({"chat": {"row_length": 33}}))
    return folder


def train(data: Path, out: Path, *more: str) -> str:
    """Run the trainer as its command line would; return what it logs."""
    arguments = ["--data", str(data), "--out", str(out), "--device", "cpu", "--rows", "8"]
    arguments += ["--warmup", "1", "--log-every", "1", "--no-eval", "--bigram-steps", "5"]
    return called(train_moe.main, *arguments, *SHAPE, *more)


def called(main: Callable[[], None], *arguments: str) -> str:
    log = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(log),
        contextlib.redirect_stdout(log),
    ):
        patch.setattr(sys, "argv", ["tool", *arguments])
        main()
    return log.getvalue()


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(data, out, "--steps", "3")
    return out


def test_a_stopped_run_goes_on_bit_by_bit(data: Path, run: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--steps", "3", "--max-seconds", "0.001")
    stopped = torch.load(tmp_path / "base.pt", weights_only=True)
    assert stopped["step"] == 1
    train(data, tmp_path, "--steps", "3")
    whole = torch.load(run / "base.pt", weights_only=True)
    parts = torch.load(tmp_path / "base.pt", weights_only=True)
    assert parts["step"] == whole["step"] == 3
    assert any(not torch.equal(stopped["model"][k], v) for k, v in whole["model"].items())
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, parts["model"][name]), name
    assert [h["loss"] for h in whole["history"]] == [h["loss"] for h in parts["history"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    take = train_moe.Workers.step

    def interrupted(self: Any, step: int, scale: float) -> Any:
        if step == 1:
            os.kill(os.getpid(), number)
        return take(self, step, scale)

    monkeypatch.setattr(train_moe.Workers, "step", interrupted)
    before = signal.getsignal(number)
    train(data, tmp_path, "--steps", "9", "--log-every", "4")
    assert torch.load(tmp_path / "base.pt", weights_only=True)["step"] == 2
    assert signal.getsignal(number) == before


def test_the_dialogue_stage_starts_from_the_base(data: Path, run: Path) -> None:
    log = train(data, run, "--stage", "chat", "--steps", "2")
    assert "base.pt: going on" in log
    state = torch.load(run / "chat.pt", weights_only=True)
    assert state["step"] == 2
    assert {h["stage"] for h in state["history"]} == {"base", "chat"}


def test_training_goes_on_from_an_exported_file(data: Path, run: Path, exported: Path) -> None:
    source = exported / "small-f16.gguf"
    read = read_gguf(source).state_dict()
    for name, tensor in exported_model(run).state_dict().items():
        assert torch.equal(read[name], tensor), name
    out = exported / "on"
    log = train(data, out, "--stage", "chat", "--steps", "1", "--start", str(source))
    assert "going on" not in log
    assert "bigram" not in log
    state = torch.load(out / "chat.pt", weights_only=True)
    assert MoeConfig(**state["config"]) == read_gguf(source).config
    moved = [float((state["model"][k] - v).abs().max()) for k, v in read.items()]
    assert 0 < max(moved) < 0.1  # one step away from the file, not from random weights


def test_a_base_beside_start_is_refused(data: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "base.pt").touch()
    start = str(exported / "small-f16.gguf")
    with pytest.raises(SystemExit, match="leave --start away"):
        train(data, tmp_path, "--stage", "chat", "--steps", "1", "--start", start)


def test_rows_too_short_for_a_window_are_refused(data: Path, run: Path) -> None:
    with pytest.raises(ValueError, match="--chat-length 65"):
        train(data, run, "--stage", "chat", "--steps", "9", "--length", "64", "--workers", "1")


def test_packed_rows_hold_every_conversation_whole() -> None:
    rng = np.random.default_rng(5)
    talks = [np.full(n, i + 1, dtype=np.uint16) for i, n in enumerate(rng.integers(5, 40, 300))]
    rows = pack_rows(talks, 41, 0)
    for i, talk in enumerate(talks):
        holders = np.flatnonzero((rows == i + 1).any(1))
        assert len(holders) == 1
        assert int((rows == i + 1).sum()) == len(talk)
    filler = np.uint16(1 << 15)
    assert int((rows == filler).sum()) == rows.size - sum(map(len, talks))
    assert len(rows) < 1.1 * sum(map(len, talks)) / 41


def test_only_assistant_replies_carry_loss(data: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    talk = Conversation("t", "test", (("Where is the sea?", "The sea was calm."),))
    tokens = encode_conversation(tokenizer, talk, system="Be kind.")
    kept = tokens[tokens < 1 << 15]
    assert (
        tokenizer.decode(kept.tolist(), skip_special_tokens=False) == "The sea was calm.<|im_end|>"
    )
    whole = tokenizer.decode((tokens & 0x7FFF).tolist(), skip_special_tokens=False)
    assert whole == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhere is the sea?<|im_end|>\n"
        "<|im_start|>assistant\nThe sea was calm.<|im_end|>\n"
    )


def test_both_expert_paths_compute_one_function() -> None:
    torch.manual_seed(1)
    experts = Experts(TINY)
    for p in experts.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    x = torch.randn(40, TINY.embed, requires_grad=True)
    pull = torch.randn(40, TINY.embed)
    found = []
    for capacity_factor in (0.0, 8.0):  # sorted; padded with room for every pair
        out, load = experts(x, capacity_factor)
        assert float(load.dropped) == 0
        found.append((out, *torch.autograd.grad((out * pull).sum(), [x, *experts.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_products_give_the_same_gradients_but_for_rounding() -> None:
    torch.manual_seed(1)
    model = MoeModel(TINY)
    model.start(1)
    ids = torch.randint(0, TINY.vocab, (4, 33))
    found = []
    for bf16 in (False, True):
        passes = Passes(model, 4, 0.0, 0.0, False, bf16)
        gradients, figures = passes(ids[:, :-1], ids[:, 1:], 1.0, 1.0)
        whole = [p if g is None else g for g, p in zip(gradients, model.parameters(), strict=True)]
        assert all(g.dtype == torch.float32 for g in whole)
        found.append((torch.cat([g.flatten() for g in whole]), float(figures[0])))
    (exact, loss), (rounded, rounded_loss) = found
    assert rounded_loss == pytest.approx(loss, rel=1e-2)
    assert rounded_loss != loss
    assert float(torch.cosine_similarity(exact, rounded, 0)) > 0.99


def test_capacity_drops_the_last_tokens_of_a_full_expert() -> None:
    chosen = torch.tensor([[0, 1], [0, 2], [0, 1]])
    p = plan(chosen, experts=3, capacity=2)
    assert p.counts.tolist() == [3, 2, 1]
    assert p.kept.tolist() == [[True, True], [True, True], [False, True]]
    assert p.token.view(3, 2)[0].tolist() == [0, 1]
    assert p.used.view(3, 2).tolist() == [[True, True], [True, True], [True, False]]


def test_kneser_ney_is_a_distribution() -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 6, (20, 40))
    model = KneserNey(rows, order=3, vocab=6)
    for context in ((0, 1), (5, 5)):
        total = sum(2.0 ** -model.bits(np.array([*context, w]))[0] for w in range(6))
        assert total == pytest.approx(1.0, abs=1e-9)
    seen = model.bits(rows[0]).mean()
    unseen = model.bits(rng.permutation(rows[0])).mean()
    assert seen < unseen


@pytest.fixture(scope="module")
def exported(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    out = tmp_path_factory.mktemp("export")
    more = ["--hf"] if _has("transformers") else []
    arguments = ["--checkpoint", str(run / "base.pt"), "--out", str(out), *more]
    called(export_moe.main, *arguments, "--tokenizer", str(data / "tokenizer.json"))
    return out


def _has(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def exported_model(run: Path) -> MoeModel:
    """Return the trained model with its matrices rounded to F16, as the export rounds them."""
    state = torch.load(run / "base.pt", weights_only=True)
    model = MoeModel(MoeConfig(**state["config"]))
    model.load_state_dict(
        {
            k: v if v.dim() == 1 or "router" in k else v.half().float()
            for k, v in state["model"].items()
        }
    )
    return model.eval()


def test_llama_cpp_computes_the_trainers_logits(data: Path, run: Path, exported: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(
        str(exported / "small-f16.gguf"),
        n_ctx=64,
        logits_all=True,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    text = b"The old ships lay near my town. It's 12 o'clock!"
    from tokenizers import Tokenizer

    ids = llama.tokenize(text, add_bos=False)
    ours = Tokenizer.from_file(str(data / "tokenizer.json")).encode(text.decode()).ids
    assert ids == ours
    llama.eval(ids)
    theirs = torch.from_numpy(np.array(llama.scores[: len(ids)], dtype=np.float32))
    with torch.no_grad():
        expected = exported_model(run).logits(torch.tensor([ids]))[0]
    assert float((theirs - expected).abs().max()) < 0.02
    assert float(expected.std()) > 0.1
    assert int((theirs.argmax(-1) == expected.argmax(-1)).sum()) >= len(ids) - 1


def test_every_quantisation_loads_and_says_its_shape(exported: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    for kind in ("f16", "q8_0", "q4_0"):
        llama = llama_cpp.Llama(
            str(exported / f"small-{kind}.gguf"), n_ctx=64, n_threads=1, verbose=False
        )
        assert llama.metadata["general.architecture"] == "qwen3moe"
        assert llama.metadata["qwen3moe.expert_used_count"] == "2"
        assert llama.metadata["tokenizer.ggml.pre"] == "qwen2"
        llama.close()


def test_transformers_computes_the_trainers_logits(run: Path, exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf", dtype=torch.float32)
    config = json.loads((exported / "hf" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        expected = exported_model(run).logits(ids)
        assert float((theirs(ids).logits - expected).abs().max()) < 1e-4
