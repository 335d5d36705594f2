"""Models of published size: the right numbers, honest metadata, files only when complete."""

from __future__ import annotations

import resource
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import shape_moe
import stock
import tiny_moe
from random_moe import writer
from random_moe.build import build
from random_moe.published import PUBLISHED
from random_moe.vocabulary import MIN_VOCAB, vocabulary

SCRIPT = Path(shape_moe.__file__)

# Parameter counts as the model cards and papers give them, in billions: total, active.
PARAMETERS = {
    "deepseek-v2-lite": (15.7, 2.4),
    "qwen1.5-moe": (14.3, 2.7),
    "olmoe": (6.9, 1.3),
    "qwen3-30b-a3b": (30.5, 3.3),
    "gpt-oss-20b": (20.9, 3.6),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts_come_out(name: str) -> None:
    model = PUBLISHED[name]
    tensors = shape_moe.cut(model, None, None).tensors
    total = sum(tensor.n_elements for tensor in tensors)
    unused = 1 - model.shape.n_expert_used / model.shape.n_expert
    idle = unused * sum(t.n_elements for t in tensors if t.role == "expert")
    published_total, published_active = PARAMETERS[name]
    assert total / 1e9 == pytest.approx(published_total, rel=0.01)
    # Cards differ in whether embeddings count as active.
    embedding = model.shape.n_embd * model.shape.n_vocab / 1e9
    active = (total - idle) / 1e9
    assert active - 2 * embedding < published_active * 1.02
    assert active > published_active * 0.98


@pytest.mark.parametrize("name", PUBLISHED)
def test_two_layers_at_full_width_run_in_stock(tmp_path: Path, name: str) -> None:
    path = shape_moe.generate(tmp_path / "m.gguf", name, n_layer=2, n_vocab=MIN_VOCAB)
    fields = GGUFReader(path).fields
    assert fields["remoe_edge.shape_only"].contents() is True
    assert "No claim about routing" in str(fields["remoe_edge.shape_note"].contents())
    assert fields["remoe_edge.shape_of"].contents() == PUBLISHED[name].card
    try:
        result = stock.run(path, (1, 70, 100), n_greedy=2, use_extra_bufts=False)
    finally:
        path.unlink()  # hundreds of megabytes
    assert result.logits.shape == (3, MIN_VOCAB)
    assert np.isfinite(result.logits).all()
    assert result.logits.std() > 0.1


def test_experts_have_the_published_bytes(tmp_path: Path) -> None:
    path = shape_moe.generate(tmp_path / "m.gguf", "olmoe", n_layer=1, n_vocab=MIN_VOCAB)
    experts = [t for t in GGUFReader(path).tensors if "_exps" in t.name]
    path.unlink()
    # 64 experts of three 2048 x 1024 matrices, 144 bytes for 256 values.
    assert [int(t.n_bytes) for t in experts] == [64 * 2048 * 1024 // 256 * 144] * 3


def test_mxfp4_files_keep_dense_weights_finer() -> None:
    tensors = shape_moe.cut(PUBLISHED["gpt-oss-20b"], 1, MIN_VOCAB).tensors
    table = shape_moe.formats("mxfp4")
    stored = {t.role: writer.tensor_format(t, table).name for t in tensors}
    assert stored["expert"] == "MXFP4"
    assert stored["dense"] == stored["embedding"] == stored["output"] == "Q8_0"


def test_rows_no_multiple_of_256_use_the_narrow_format() -> None:
    tensors = shape_moe.cut(PUBLISHED["deepseek-v2-lite"], 2, MIN_VOCAB).tensors
    table = shape_moe.formats("q4_k")
    stored = {t.name: writer.tensor_format(t, table).name for t in tensors}
    assert stored["blk.1.ffn_gate_exps.weight"] == "Q4_K"
    assert stored["blk.1.ffn_down_exps.weight"] == "Q5_0"


def test_the_file_does_not_compress(tmp_path: Path) -> None:
    path = shape_moe.generate(tmp_path / "m.gguf", "olmoe", n_layer=1, n_vocab=MIN_VOCAB)
    tensor = next(t for t in GGUFReader(path).tensors if "down_exps" in t.name)
    sample = tensor.data.tobytes()[: 8 << 20]
    path.unlink()
    assert len(zlib.compress(sample, 6)) > 0.99 * len(sample)


def test_generation_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    code = (
        "import pathlib, shape_moe\n"
        f"shape_moe.generate(pathlib.Path({str(path)!r}), 'qwen3-30b-a3b', n_layer=1)\n"
        # Not getrusage: its maximum goes back to the process that forked this one.
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SCRIPT.parent
    )
    size = path.stat().st_size
    path.unlink()
    assert size > 500 << 20
    assert int(done.stdout) << 10 < 256 << 20


def test_the_command_writes_a_model_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    done = run("--arch", "olmoe", "-o", str(path), "--layers", "1", "--vocab", str(MIN_VOCAB))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n"
    assert "olmoe q4_k" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]


def test_too_little_space_is_told_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))
    with pytest.raises(writer.WriteError, match=r"needs 3\d\d\d MiB but 100 MiB are free"):
        shape_moe.generate(tmp_path / "m.gguf", "olmoe")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    # A file size limit fails like a full disk does: in the middle of a write.
    path = tmp_path / "m.gguf"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--arch", "olmoe", "-o", str(path), "--layers", "1"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (f"shape_moe: {path}: File too large; nothing was kept")
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    shape = tiny_moe.shape_of("olmoe", "Q4_0")
    plan = build("olmoe", replace(shape, n_vocab=MIN_VOCAB - 1))
    table = shape_moe.formats("q4_0")
    with pytest.raises(ValueError, match="byte-level vocabulary needs"):
        writer.write(path, plan, table, seed=0)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "gpt-5"), "invalid choice: 'gpt-5'"),
        (("--arch", "olmoe", "--layers", "0"), "argument --layers: must be 1 or more"),
        (("--arch", "olmoe", "--vocab", "9"), f"argument --vocab: must be {MIN_VOCAB} or more"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run("-o", str(tmp_path / "m.gguf"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    done = run("--arch", "olmoe", "-o", str(tmp_path / "no" / "m.gguf"))
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("n_vocab", [MIN_VOCAB, 1000, 50304, 201088])
def test_vocabularies_have_the_asked_size_and_unique_tokens(n_vocab: int) -> None:
    words = vocabulary(n_vocab)
    assert len(words.tokens) == len(words.types) == len(set(words.tokens)) == n_vocab
    known = set(words.tokens)
    for merge in words.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known
