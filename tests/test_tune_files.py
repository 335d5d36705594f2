"""What tuning reads and writes: routers, checkpoints, texts; and the commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="tuning needs torch (extra [tune])")
pytest.importorskip("transformers", reason="tuning needs transformers (extra [tune])")

from remoe_edge.cli.eval import command as eval_command  # noqa: E402
from remoe_edge.cli.tune import command as tune_command  # noqa: E402
from remoe_edge.convert.routers import convert_routers  # noqa: E402
from remoe_edge.errors import InputError, ModelError, RemoeError, UnsupportedError  # noqa: E402
from remoe_edge.tune.architecture import hf_router_name  # noqa: E402
from remoe_edge.tune.data import Batches, load_domains, open_tokenizer  # noqa: E402
from remoe_edge.tune.decoder import Decoder  # noqa: E402
from remoe_edge.tune.record import (  # noqa: E402
    base_fingerprint,
    load_overlay_routers,
    load_routers,
    save_routers,
)
from remoe_edge.tune.weights import open_weights  # noqa: E402
from tune_models import (  # noqa: E402
    CHAT,
    N_VOCAB,
    SPECIALS,
    byte_tokens,
    hf_model,
    write_gguf,
)
from tuning import write_data  # noqa: E402


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(hf_model("qwen3moe"), "qwen3moe", tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


# Routers on disk


def test_saved_routers_load_bit_exactly_with_their_record(gguf_path: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    decoder = Decoder(open_weights(gguf_path))
    tuned = [torch.randn(8, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    path = tmp_path / "tuned.safetensors"
    save_routers(path, tuned, decoder.shape, "f" * 64, {"seed": 7})
    loaded = load_routers(path, decoder.shape, "f" * 64)
    assert all(torch.equal(a, b) for a, b in zip(tuned, loaded, strict=True))
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        assert sorted(opened.keys()) == [hf_router_name(layer) for layer in range(3)]
    assert metadata["format"] == "remoe-edge-routers"
    assert metadata["version"] == "1"
    assert metadata["architecture"] == "qwen3moe"
    assert json.loads(metadata["run"]) == {"seed": 7}
    with pytest.raises(ModelError, match="another base"):
        load_routers(path, decoder.shape, "e" * 64)


def test_routers_that_are_not_finite_are_not_saved(gguf_path: Path, tmp_path: Path) -> None:
    decoder = Decoder(open_weights(gguf_path))
    bad = [router.clone() for router in decoder.routers]
    bad[2][0, 0] = math.nan
    with pytest.raises(ModelError, match="layer 2"):
        save_routers(tmp_path / "x.safetensors", bad, decoder.shape, "", {})
    assert list(tmp_path.iterdir()) == []


def broken(kind: str) -> dict[str, Any]:
    tensors = {hf_router_name(layer): torch.randn(8, 32) for layer in range(3)}
    if kind == "nan":
        tensors[hf_router_name(1)][2, 3] = math.nan
    elif kind == "inf":
        tensors[hf_router_name(2)][0, 0] = math.inf
    elif kind == "missing":
        del tensors[hf_router_name(1)]
    elif kind == "transposed":
        tensors[hf_router_name(0)] = torch.randn(32, 8)
    elif kind == "shape":
        tensors[hf_router_name(0)] = torch.randn(9, 32)
    elif kind == "names":
        return {"lm_head.weight": torch.randn(4, 4)}
    elif kind == "extra":
        tensors["model.layers.9.mlp.gate.weight"] = torch.randn(8, 32)
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "layer 1 has 1 values that are NaN"),
        ("inf", "layer 2 has 1 values"),
        ("missing", r"1 of 3 routers are missing, first model\.layers\.1"),
        ("transposed", r"shape \[32, 8\], expected \[8, 32\] \(it is transposed\)"),
        ("shape", r"shape \[9, 32\]"),
        ("names", r"3 of 3 routers are missing.*holds lm_head\.weight"),
        ("extra", r"model\.layers\.9\.mlp\.gate\.weight is no router of this model"),
    ],
)
def test_broken_routers_are_refused(
    gguf_path: Path, tmp_path: Path, kind: str, message: str
) -> None:
    from safetensors.torch import save_file

    shape = open_weights(gguf_path).shape
    path = tmp_path / "bad.safetensors"
    save_file(broken(kind), path)
    with pytest.raises(ModelError, match=message):
        load_routers(path, shape)


def test_routers_file_that_is_none(gguf_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shape = open_weights(gguf_path).shape
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="no such routers file"):
        load_routers(path, shape)
    path.write_text("not safetensors at all")
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_routers(path, shape)
    save_file(broken(""), path, metadata={"architecture": "olmoe"})
    with pytest.raises(ModelError, match="routers of a olmoe model, but the base is qwen3moe"):
        load_routers(path, shape)


def test_base_with_broken_routers_is_refused(tmp_path: Path) -> None:
    model = hf_model("qwen3moe")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "hf")
    path = write_gguf(model, "qwen3moe", tmp_path / "nan.gguf")
    for source in (path, tmp_path / "hf"):
        with pytest.raises(ModelError, match="router of layer 1 has 1 values"):
            Decoder(open_weights(source))


def test_models_that_cannot_be_tuned(tmp_path: Path) -> None:
    import gguf
    import transformers

    with pytest.raises(InputError, match="no such model"):
        open_weights(tmp_path / "absent.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"GGUFjunk")
    with pytest.raises(ModelError, match="not a readable GGUF"):
        open_weights(tmp_path / "junk.gguf")
    writer = gguf.GGUFWriter(tmp_path / "dense.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="architecture 'llama'"):
        open_weights(tmp_path / "dense.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        open_weights(tmp_path / "empty")
    transformers.LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(UnsupportedError, match="model type 'llama'"):
        open_weights(tmp_path / "llama")


def test_gguf_cut_short_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    whole = gguf_path.read_bytes()
    for keep in (len(whole) // 2, len(whole) - 100, 5000):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelError, match="not a readable GGUF"):
            Decoder(open_weights(path))


def test_missing_expert_and_missing_router_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    hf_model("qwen3moe").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    expert = "model.layers.0.mlp.experts.5.up_proj.weight"
    assert expert in tensors
    save_file({k: v for k, v in tensors.items() if k != expert}, file)
    with pytest.raises(ModelError, match="up_proj has 7 experts, expected 8"):
        open_weights(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != hf_router_name(2)}, file)
    with pytest.raises(ModelError, match="layer 2 has no router"):
        Decoder(open_weights(tmp_path))
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="damaged safetensors"):
        open_weights(tmp_path)


# Data


def test_text_and_chat_become_tokens(gguf_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one" + SPECIALS[0] + "two")
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    lines = [json.dumps({"messages": talk}), "", json.dumps({"text": "é" + SPECIALS[1]})]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "c.npy", np.arange(30, dtype=np.uint16))
    a, b, c = load_domains([tmp_path], gguf_path, 4, N_VOCAB)
    assert [d.name for d in (a, b, c)] == ["a", "b", "c"]
    assert a.tokens.tolist() == [*b"one", 256, *b"two", 256]
    chat = [257, *b"user\nhi", 258, *b"\n", 257, *b"assistant\nyo", 258, *b"\n", 256]
    # A marker inside a document's text stays text.
    assert b.tokens.tolist() == [*chat, *"é<|im_start|>".encode(), 256]
    assert c.tokens.tolist() == list(range(30))


def test_only_the_line_ends_beside_a_marker_are_layout(gguf_path: Path, tmp_path: Path) -> None:
    end = SPECIALS[0]
    (tmp_path / "a.txt").write_text(f"one\n\n{end}\n  two\n{end}\n")
    (only,) = load_domains([tmp_path], gguf_path, 4, N_VOCAB)
    assert only.tokens.tolist() == [*b"one\n", 256, *b"  two", 256]


def test_hf_tokenizer_agrees_with_the_gguf(gguf_path: Path, tmp_path: Path) -> None:
    import tokenizers
    import transformers

    vocab = {token: n for n, token in enumerate(byte_tokens())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], chat_template=CHAT
    )
    fast.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    ours, theirs = open_tokenizer(tmp_path), open_tokenizer(gguf_path)
    text = "Grüße, 12 <|im_end|>\n\tx"
    assert ours.encode(text) == theirs.encode(text) == list(text.encode())
    talk = [{"role": "user", "content": "hi"}]
    assert ours.chat(talk) == theirs.chat(talk)
    assert ours.end() == theirs.end() == [256]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "the data file is empty"),
        ("a.txt", b" \n ", "holds no text"),
        ("a.txt", b"too short", r"10 tokens are fewer than one window of 24 \+ 1"),
        ("a.txt", b"ok " * 40 + b"\xff", "not UTF-8 text at byte 120"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"a\.jsonl:1: expected"),
        ("a.npy", b"nonsense", r"not a readable \.npy"),
        ("a.pdf", b"%PDF", r"data files end in \.txt, \.jsonl, \.npy"),
    ],
)
def test_bad_data_files(
    gguf_path: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_domains([tmp_path / name], gguf_path, 24, N_VOCAB)


def test_data_that_is_not_there_or_not_of_this_model(gguf_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file"):
        load_domains([tmp_path / "x.txt"], gguf_path, 24, N_VOCAB)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="file in this folder"):
        load_domains([tmp_path / "folder"], gguf_path, 24, N_VOCAB)
    np.save(tmp_path / "t.npy", np.full(50, N_VOCAB))
    with pytest.raises(InputError, match="token 260 is not in the model's vocabulary"):
        load_domains([tmp_path / "t.npy"], gguf_path, 24, N_VOCAB)
    np.save(tmp_path / "t.npy", np.ones((5, 50)))
    with pytest.raises(InputError, match="one row of integer token ids"):
        load_domains([tmp_path / "t.npy"], gguf_path, 24, N_VOCAB)
    (tmp_path / "folder" / "t.txt").write_text("x")
    with pytest.raises(InputError, match="two data files are named 't'"):
        load_domains([tmp_path / "t.npy", tmp_path / "folder"], gguf_path, 24, N_VOCAB)


def test_batches_hang_on_seed_and_step_alone(gguf_path: Path, data_dir: Path) -> None:
    domains = load_domains([data_dir], gguf_path, 24, N_VOCAB)
    one, two = Batches(domains, 24, 4, 1), Batches(domains, 24, 4, 1)
    one[0]
    assert (one[5] == two[5]).all()
    assert not (one[5] == one[6]).all()
    assert not (one[5] == Batches(domains, 24, 4, 2)[5]).all()
    # Rows take turns: code, prose, code, prose.
    streams = [" ".join(map(str, d.tokens)) for d in domains]
    for row, number in zip(one[0], (0, 1, 0, 1), strict=True):
        text = " ".join(map(str, row))
        assert text in streams[number]
        assert text not in streams[1 - number]


# The command


def test_command_writes_routers_record_and_curves(
    gguf_path: Path, data_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out" / "tuned.safetensors"
    arguments = [str(gguf_path), "--data", str(data_dir), "-o", str(out), "--steps", "4"]
    arguments += ["--batch", "2", "--window", "24", "--checkpoint-every", "2"]
    result = CliRunner().invoke(tune_command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["settings"]["steps"] == 4
    assert record["cache_slots"] == 6
    assert len(record["history"]) == 4
    assert {d["domain"] for d in record["data"]} == {"prose", "code"}
    assert all(len(d["sha256"]) == 64 for d in record["data"])
    assert "torch" in record["versions"]
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    shape = open_weights(gguf_path).shape
    assert len(load_routers(out, shape)) == 3
    again = CliRunner().invoke(tune_command, arguments)
    assert "going on from step 4" in again.stderr
    refused = CliRunner().invoke(tune_command, [*arguments, "--lr", "0.5"])
    assert isinstance(refused.exception, InputError)
    assert "now 0.5" in str(refused.exception)


def test_command_begins_at_given_routers(gguf_path: Path, data_dir: Path, tmp_path: Path) -> None:
    few = ["--data", str(data_dir), "--steps", "2", "--batch", "2", "--window", "24"]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    whole = CliRunner().invoke(
        tune_command, [str(gguf_path), *few, "--lr", "0.1", "-o", str(first)]
    )
    assert whole.exit_code == 0, whole.output
    # So small a rate moves nothing that float32 can hold: the result is where the run began.
    still = [str(gguf_path), *few, "--lr", "1e-30", "-o", str(second)]
    assert CliRunner().invoke(tune_command, [*still, "--routers", str(first)]).exit_code == 0
    shape = open_weights(gguf_path).shape
    begun, ended = load_routers(first, shape), load_routers(second, shape)
    for one, other in zip(begun, ended, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert json.loads(second.with_suffix(".json").read_text())["started_from"] == first.name
    elsewhere = CliRunner().invoke(tune_command, still)
    assert "other start" in str(elsewhere.exception)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--window", "24"], "the data file is empty"),
        (["--device", "cuda:99"], "no CUDA device" if not torch.cuda.is_available() else ""),
        (["--device", "toaster"], "not a device"),
        (["--lr", "0"], "lr must be above 0"),
    ],
)
def test_command_refuses_before_any_work(
    gguf_path: Path, tmp_path: Path, extra: list[str], message: str
) -> None:
    (tmp_path / "a.txt").write_text("")
    out = tmp_path / "tuned.safetensors"
    arguments = [str(gguf_path), "--data", str(tmp_path / "a.txt"), "-o", str(out), *extra]
    result = CliRunner().invoke(tune_command, arguments)
    assert isinstance(result.exception, RemoeError)
    assert message in str(result.exception)
    assert not list(tmp_path.glob("tuned*"))


def test_eval_reads_an_overlay_as_it_reads_its_routers(
    gguf_path: Path, data_dir: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(gguf_path.read_bytes())
    decoder = Decoder(open_weights(base), torch.device("cpu"), torch.float32)
    tuned = [torch.randn_like(router) for router in decoder.routers]
    routers = tmp_path / "tuned.safetensors"
    save_routers(routers, tuned, decoder.shape, base_fingerprint(base), {})
    overlay = tmp_path / "base.routers.gguf"
    convert_routers(routers, base, overlay)
    loaded = load_overlay_routers(overlay, base, decoder.shape)
    assert all(torch.equal(a, b) for a, b in zip(tuned, loaded, strict=True))

    report = tmp_path / "figures.json"
    arguments = [str(base), "--data", str(data_dir), "--window", "24", "-o", str(report)]
    for name in (f"a={routers}", f"b={overlay}", "default"):
        arguments += ["--routers", name]
    result = CliRunner().invoke(eval_command, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())["routers"]
    assert figures["a"] == figures["b"] == figures["default"]
    assert figures["a"] != figures["base"]

    (tmp_path / "hf").mkdir()
    with pytest.raises(InputError, match="an overlay belongs to a GGUF"):
        load_overlay_routers(overlay, tmp_path / "hf", decoder.shape)
