"""Widening keeps logits, routing and text, while bytes grow to those of a real model."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from small_moe import F16, Q4_0, Q8_0, write_small_moe

TOOLS = Path(__file__).parent.parent / "tools" / "test_models"
sys.path.insert(0, str(TOOLS))

import check_twin  # noqa: E402
import widen_moe  # noqa: E402
from remoe_edge.errors import RemoeError  # noqa: E402
from widen import twin as twin_file  # noqa: E402
from widen.compare import Comparison, Reading, nats, opened, real_layers  # noqa: E402
from widen.plan import make_plan  # noqa: E402
from widen.shapes import SHAPES, differences  # noqa: E402
from widen.source import Source  # noqa: E402

TOKENS = np.random.default_rng(7).integers(0, 256, 96).astype(np.int32)


def widen(source: Path, *options: str, name: str = "twin.gguf") -> Path:
    output = source.with_name(name)
    assert widen_moe.main([str(source), "-o", str(output), *options]) == 0
    return output


def both(source: Path, twin: Path) -> tuple[Reading, Reading, list[int]]:
    with opened(source, 128, 1) as small, opened(twin, 128, 1) as wide:
        return small.read(TOKENS), wide.read(TOKENS), real_layers(wide.file)


def weights(path: Path, name: str) -> npt.NDArray[np.float32]:
    tensor = next(t for t in GGUFReader(path).tensors if t.name == name)
    return np.asarray(dequantize(tensor.data, GGMLQuantizationType(tensor.tensor_type)))


def expert_bytes(path: Path) -> bytes:
    tensors = [t for t in GGUFReader(path).tensors if t.name.endswith("_exps.weight")]
    return b"".join(t.data.tobytes() for t in tensors)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_moe(tmp_path / "small.gguf")


@pytest.mark.parametrize(
    ("kind", "quant"), [(Q4_0, "q4_0"), (Q8_0, "q8_0"), (F16, "f16")], ids=["q4_0", "q8_0", "f16"]
)
def test_experts_that_keep_their_type_give_equal_bits(
    tmp_path: Path, kind: GGMLQuantizationType, quant: str
) -> None:
    # Rows of 64: a kernel for F16 sums what is left of a longer stride in another order.
    source = write_small_moe(tmp_path / "small.gguf", kind=kind, expert_ffn=64)
    twin = widen(source, "--embed", "256", "--expert-ffn", "192", "--quant", quant)
    before, after, layers = both(source, twin)
    assert layers == [0, 1, 2]
    assert np.array_equal(before.logits, after.logits)
    assert np.array_equal(before.routing, after.routing)
    with opened(source, 128, 1) as a, opened(twin, 128, 1) as b:
        assert a.greedy(TOKENS[:16], 24).tolist() == b.greedy(TOKENS[:16], 24).tolist()


@pytest.mark.parametrize(
    ("quant", "embed", "units"),
    [("q4_0", 256, 96), ("q4_0", 224, 128), ("q8_0", 224, 64), ("q4_k", 768, 352)],
)
def test_experts_of_another_type_stay_near(
    tmp_path: Path, quant: str, embed: int, units: int
) -> None:
    source = write_small_moe(tmp_path / "small.gguf", kind=F16, branch_scale=0.3)
    twin = widen(source, "--embed", str(embed), "--expert-ffn", str(units), "--quant", quant)
    before, after, layers = both(source, twin)
    found = Comparison()
    found.add(TOKENS, before, after, layers)
    assert found.routing_equal >= 0.995
    source_perplexity, twin_perplexity = found.perplexities
    assert abs(twin_perplexity / source_perplexity - 1) < 0.02
    assert found.max_logit_error < 0.1 * float(before.logits.std())


def test_parts_add_up_to_the_weights(small: Path) -> None:
    twin = widen(small, "--embed", "224", "--expert-ffn", "128", "--quant", "q4_0")
    for layer in range(3):
        for matrix in ("gate", "up"):
            name = f"blk.{layer}.ffn_{matrix}_exps.weight"
            old, new = weights(small, name), weights(twin, name)
            for copy in range(3):
                rows = new[:, copy * 32 : copy * 32 + 32]
                total = rows[..., :64] + rows[..., 64:128] + rows[..., 128:192]
                assert np.abs(total - old).max() < np.abs(old).max() / 2**10
        name = f"blk.{layer}.ffn_down_exps.weight"
        old, new = weights(small, name), weights(twin, name)
        for copy in range(3):
            rows = new[:, copy * 64 : copy * 64 + 64]
            total = rows[..., :32] + rows[..., 32:64] + rows[..., 64:96]
            assert np.abs(total - old).max() < np.abs(old).max() / 2**10


@pytest.mark.parametrize("quant", ["q4_0", "q4_k", "q8_0", "f16"])
def test_nothing_reaches_the_padding(small: Path, quant: str) -> None:
    embed, units = (1024, 288) if quant == "q4_k" else (224, 160)
    options = ("--embed", str(embed), "--expert-ffn", str(units), "--quant", quant)
    twin = widen(small, *options)
    file = Source(twin)
    hidden = np.zeros(embed, dtype=bool)
    stride = file.key("remoe_edge.widened_hidden_stride")
    for copy in range(file.key("remoe_edge.widened_hidden_copies")):
        hidden[copy * stride : copy * stride + 64] = True
    unit = np.zeros(units, dtype=bool)
    stride = file.key("remoe_edge.widened_unit_stride")
    for copy in range(file.key("remoe_edge.widened_unit_copies")):
        unit[copy * stride : copy * stride + 32] = True
    assert not hidden.all()
    assert not unit.all()

    embedding = weights(twin, "token_embd.weight")
    assert not embedding[:, ~hidden].any()
    assert embedding[:, hidden].any(axis=0).all()
    for layer in range(3):
        output = weights(twin, f"blk.{layer}.attn_output.weight")
        assert not output[~hidden].any()
        up = weights(twin, f"blk.{layer}.ffn_up_exps.weight")
        assert not up[:, ~unit][:, :, hidden].any()
        down = weights(twin, f"blk.{layer}.ffn_down_exps.weight")
        assert not down[:, ~hidden][:, :, unit].any()
        gate = weights(twin, f"blk.{layer}.ffn_gate_exps.weight")
        assert np.isfinite(gate).all()
        largest = np.abs(weights(small, f"blk.{layer}.ffn_gate_exps.weight")).max()
        assert np.abs(gate).max() <= largest * 1.01


@pytest.mark.parametrize(
    ("quant", "embed", "units"), [("q4_0", 2048, 704), ("q4_0", 992, 704), ("q4_k", 1024, 768)]
)
def test_expert_bytes_do_not_compress(tmp_path: Path, quant: str, embed: int, units: int) -> None:
    source = write_small_moe(tmp_path / "small.gguf", layers=1, experts=4)
    twin = widen(source, "--embed", str(embed), "--expert-ffn", str(units), "--quant", quant)
    raw = expert_bytes(twin)
    assert len(zlib.compress(raw, 1)) > 0.9 * len(raw)


def test_echo_layers_route_and_add_nothing(small: Path) -> None:
    twin = widen(small, "--embed", "128", "--expert-ffn", "64", "--quant", "q8_0", "--layers", "7")
    before, after, layers = both(small, twin)
    file = Source(twin)
    assert file.layers == 7
    assert file.key("remoe_edge.widened_echo_layers") == [1, 2, 4, 6]
    assert layers == [0, 3, 5]
    assert np.array_equal(before.logits, after.logits)
    assert np.array_equal(before.routing, after.routing[layers])
    echo = after.routing[1]
    assert len(np.unique(echo)) > file.top_k
    assert not np.array_equal(echo, after.routing[0])
    raw = expert_bytes(twin)
    assert len(zlib.compress(raw, 1)) > 0.9 * len(raw)


def test_a_tied_output_hears_one_copy(tmp_path: Path) -> None:
    source = write_small_moe(tmp_path / "small.gguf", is_tied=True)
    twin = widen(source, "--embed", "256", "--expert-ffn", "64", "--quant", "q8_0")
    before, after, _ = both(source, twin)
    assert np.array_equal(before.logits, after.logits)


def test_the_source_in_another_type_widens_exactly(small: Path) -> None:
    same = ("--embed", "64", "--expert-ffn", "32", "--parts", "1", "--quant", "q4_0")
    source = widen(small, *same, name="small-q4_0.gguf")
    assert source.stat().st_size < small.stat().st_size
    twin = widen(source, "--embed", "192", "--expert-ffn", "64", "--quant", "q4_0")
    before, after, _ = both(source, twin)
    assert np.array_equal(before.logits, after.logits)


def test_keys_and_tokenizer_are_kept(small: Path) -> None:
    twin = widen(small, "--embed", "256", "--expert-ffn", "96")
    before, after = GGUFReader(small), GGUFReader(twin)
    changed = {
        "general.name": "random small moe widened to 256 x 96",
        "qwen3moe.embedding_length": 256,
        "qwen3moe.expert_feed_forward_length": 96,
    }
    for name, field in before.fields.items():
        if name.startswith("GGUF."):
            continue
        there = after.get_field(name)
        assert there is not None, name
        assert there.types == field.types, name
        assert there.contents() == changed.get(name, field.contents()), name
    file = Source(twin)
    assert file.key("remoe_edge.widened_from") == "random small moe"
    assert file.key("remoe_edge.widened_from_sha256") == Source(small).sha256()
    assert file.key("remoe_edge.widened_from_embedding_length") == 64
    assert file.key("remoe_edge.widened_from_expert_feed_forward_length") == 32


def test_the_seed_changes_noise_and_nothing_else(small: Path) -> None:
    sizes = ("--embed", "256", "--expert-ffn", "96", "--quant", "q8_0")
    first = widen(small, *sizes, name="a.gguf")
    again = widen(small, *sizes, name="b.gguf")
    other = widen(small, *sizes, "--seed", "2", name="c.gguf")
    assert first.read_bytes() == again.read_bytes()
    assert expert_bytes(first) != expert_bytes(other)
    assert np.array_equal(both(small, first)[1].logits, both(small, other)[1].logits)


def test_memory_stays_bounded(small: Path) -> None:
    source = Source(small)
    plan = make_plan(source, 2048, 1408, "q4_0", None, None)
    tracemalloc.start()
    try:
        size = twin_file.write(source, plan, small.with_name("twin.gguf"), seed=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 200 * 2**20
    assert peak < 64 * 2**20


def test_rows_that_q4_k_cannot_hold_fall_back(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = widen(small, "--embed", "768", "--expert-ffn", "352", "--quant", "q4_k")
    assert "rows of 352 do not divide by 256, so q5_0" in capsys.readouterr().err
    kinds = {t.name: GGMLQuantizationType(t.tensor_type) for t in GGUFReader(twin).tensors}
    assert kinds["blk.0.ffn_gate_exps.weight"] == GGMLQuantizationType.Q4_K
    assert kinds["blk.0.ffn_down_exps.weight"] == GGMLQuantizationType.Q5_0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--embed", "32"], "--embed 32 is below the source's 64"),
        (["--embed", "100"], "--embed 100 does not divide into blocks of 32: take 128"),
        (["--expert-ffn", "40"], "--expert-ffn 40 does not divide into blocks of 32: take 64"),
        (["--layers", "2"], "--layers 2: the source has 3"),
        (["--parts", "0"], "--parts 0"),
    ],
)
def test_bad_sizes_are_refused(
    small: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    output = small.with_name("twin.gguf")
    sizes = ["--embed", "256", "--expert-ffn", "96", *options]
    assert widen_moe.main([str(small), "-o", str(output), *sizes]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert reason in said.err
    assert said.err.count("\n") == 1
    assert list(small.parent.iterdir()) == [small]


def test_bad_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_small_moe(tmp_path / "other.gguf", arch="qwen2moe")
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write_small_moe(tmp_path / "whole.gguf").read_bytes()[:5000])
    for source, reason in (
        (other, "architecture qwen2moe; only qwen3moe"),
        (text, "not a readable GGUF"),
        (cut, "not a readable GGUF"),
        (tmp_path / "none.gguf", "no such file"),
    ):
        assert widen_moe.main([str(source), "-o", str(tmp_path / "twin.gguf")]) == 1
        said = capsys.readouterr().err
        assert reason in said
        assert str(source) in said
        assert said.count("\n") == 1


def test_outputs_are_protected(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["--embed", "256", "--expert-ffn", "96"]
    before = small.read_bytes()
    assert widen_moe.main([str(small), "-o", str(small), "--force", *sizes]) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert small.read_bytes() == before
    kept = small.with_name("kept.gguf")
    kept.write_text("precious")
    assert widen_moe.main([str(small), "-o", str(kept), *sizes]) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert kept.read_text() == "precious"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    assert widen_moe.main([str(small), "-o", str(small.with_name("new.gguf")), *sizes]) == 1
    assert "has 0 MiB free" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(small: Path) -> None:
    # A file size limit stands in for the full disk: both fail a write half-way.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    command = [sys.executable, str(TOOLS / "widen_moe.py"), str(small)]
    command += ["-o", str(small.with_name("twin.gguf")), "--embed", "512", "--expert-ffn", "352"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was kept" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(small.parent.iterdir()) == [small]


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_an_interruption_leaves_nothing(small: Path, reason: BaseException) -> None:
    written = 0

    def interrupt(count: int) -> None:
        nonlocal written
        written += count
        if written > 2**20:
            raise reason

    source = Source(small)
    plan = make_plan(source, 512, 352, "q4_0", None, None)
    with pytest.raises((KeyboardInterrupt, RemoeError)):
        twin_file.write(source, plan, small.with_name("twin.gguf"), 1, interrupt)
    assert list(small.parent.iterdir()) == [small]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_say_what_differs(small: Path, name: str) -> None:
    shape, source = SHAPES[name], Source(small)
    plan = make_plan(source, shape.embed, shape.expert_ffn, "q4_0", shape.moe_layers, None)
    assert plan.expert_bytes == 3 * shape.embed * shape.expert_ffn * 18 // 32
    assert len(plan.layers) == shape.moe_layers
    assert sum(not layer.is_echo for layer in plan.layers) == source.layers
    said = differences(shape, source, plan)
    assert f"{source.experts} experts a layer, not {shape.experts}" in said
    assert (f"top-{source.top_k}, not top-{shape.top_k}" in said) == (source.top_k != shape.top_k)
    assert any("shared experts" in line for line in said) == (shape.shared_ffn > 0)


def test_the_check_reports_equality(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The rain in Spain stays mainly in the plain. " * 4)
    twin = widen(small, "--embed", "128", "--expert-ffn", "64", "--quant", "q8_0")
    capsys.readouterr()
    assert (
        check_twin.main([str(small), str(twin), str(text), "--context", "64", "--threads", "1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "(100.0000%)" in said
    assert "largest logit error 0\n" in said
    assert "greedy text equal   1 of 1" in said


def test_the_check_notices_a_difference(tmp_path: Path, small: Path) -> None:
    other = write_small_moe(tmp_path / "other.gguf", seed=1)
    before, after, layers = both(small, other)
    found = Comparison()
    found.add(TOKENS, before, after, layers)
    assert found.routing_equal < 0.5
    assert found.max_logit_error > 1


def test_nats_count_every_token_but_the_first() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], dtype=np.float32))
    assert nats(logits, np.array([0, 2])) == pytest.approx(-np.log(0.25))
