"""Coarser experts: made by ggml's converters, read on a miss, bit-equal where they are no coarser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import stock
import tiny_dense
import tiny_moe
from conversations import ALL, batch_of, join, prompt
from conversations import run as run_all
from remoe_edge import Engine
from remoe_edge.cli import cli
from remoe_edge.cli.convert import command
from remoe_edge.convert import coarse as writing
from remoe_edge.convert.coarse import write_coarse
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError, ModelError, ReadError, RemoeError
from remoe_edge.files import coarse
from remoe_edge.files.tensor_values import read_tensor, to_float32
from remoe_edge.native import _core
from remoe_edge.quality import price_list
from test_lossy import DECODED, N_GREEDY, REFUSED, TOKEN, rows_of

NEARLY_ALL = 0.999
JUST_ABOVE_HALF = 0.501  # of two experts, one at least is below
# What must not depend on the clock, as how often an expert was begun before its down does.
COUNTED = ("hits", "misses", "bytes_read", "coarse_bytes", "evictions", "weighed", "coarse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coarse")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A model with coarser experts beside it."""
    path = tiny_moe.make(folder / "m.gguf", "qwen3moe", "Q8_0")
    write_coarse(path, "q4_0", coarse.beside(path))
    return path


def engine(path: Path, **settings: Any) -> Engine:
    given = {"n_ctx": 64, "threads": 2, "cache": "40%", "prefetch": "off", **settings}
    return Engine(path, **given)


def same_type(folder: Path, arch: str, name: str, **form: Any) -> Path:
    """Give a model and beside it its own experts once more, as no command writes them."""
    path = tiny_moe.make(folder / f"{name}.gguf", arch, "Q8_0", **form)
    own = _core.ModelFile.open(str(path))
    tensors = [own.tensors[m.tensor] for layer in own.expert_layers for m in layer.matrices]
    plans = [writing._planned(each, "Q8_0") for each in tensors]
    assert all(each.keeps for each in plans)
    writing._write(coarse.beside(path), own, "Q8_0", plans, None)
    return path


def test_only_experts_are_written_in_fewer_bytes(model: Path) -> None:
    own, made = _core.ModelFile.open(str(model)), _core.ModelFile.open(str(coarse.beside(model)))
    experts = [own.tensors[m.tensor].name for layer in own.expert_layers for m in layer.matrices]
    assert sorted(tensor.name for tensor in made.tensors) == sorted(experts)
    assert {tensor.type_name for tensor in made.tensors} == {"Q4_0"}
    assert made.expert_bytes * 34 == own.expert_bytes * 18  # bytes of 32 weights
    record = coarse.check(coarse.beside(model), own)
    assert (record.type, record.base_name) == ("Q4_0", own.string("general.name") or "m")
    for tensor in made.tensors:
        was = own.find(tensor.name)
        assert was is not None
        assert was.shape == tensor.shape
        before, now = (
            to_float32(read_tensor(own, was), was),
            to_float32(read_tensor(made, tensor), tensor),
        )
        scale = np.abs(before).max(axis=-1, keepdims=True)
        assert np.abs(now - before).max() > 0
        assert (np.abs(now - before) < 0.15 * scale).all()


def test_the_type_of_llama_cpp_where_rows_are_short(folder: Path) -> None:
    assert _core.coarse_type_for("Q2_K", 512) == 10
    assert _core.coarse_type_for("q2_k", 64) == _core.coarse_type_for("IQ4_NL", 64) == 20
    with pytest.raises(InputError, match=r"no type 'Q9' to requantise to; there are: Q2_K, .*Q4_0"):
        _core.coarse_type_for("Q9", 256)
    with pytest.raises(RemoeError, match="no multiple"):
        _core.coarse_type_for("Q4_0", 33)
    with pytest.raises(InputError, match="so many rows"):
        _core.requantise(8, np.zeros(33, np.uint8), 2, 1, 32)


def test_what_is_no_finite_number_is_refused() -> None:
    with pytest.raises(ModelError, match="finite"):
        _core.requantise(0, np.full(32, np.nan, np.float32).view(np.uint8), 8, 1, 32)


@pytest.mark.parametrize(
    ("arch", "form"),
    [("qwen3moe", {}), ("gpt-oss", {}), ("olmoe", {}), ("qwen35moe", {"merged_gate_up": True})],
    ids=str,
)
def test_equal_where_it_is_no_coarser(folder: Path, arch: str, form: dict[str, bool]) -> None:
    """The second file's experts are the model's own: whichever is read, no bit differs from stock."""
    path = same_type(folder, arch, f"same-{arch}-{len(form)}", **form)
    expected = stock.run(path, [TOKEN], N_GREEDY + 12, n_threads=2, use_extra_bufts=False)
    with engine(path, coarse_below=JUST_ABOVE_HALF) as run:
        bits = rows_of(run, expected.tokens)
        counts = run.counts()
    assert (bits == expected.logits.view(np.uint32)).all()
    assert 0 < counts["coarse_bytes"] <= counts["bytes_read"]
    assert counts["bytes_read"] == counts["misses"] * expert_bytes(path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in tiny_moe.ARCHS if arch not in REFUSED])
def test_equal_in_every_architecture(folder: Path, arch: str) -> None:
    test_equal_where_it_is_no_coarser(folder, arch, {})


def expert_bytes(path: Path) -> int:
    layers = _core.ModelFile.open(str(path)).expert_layers
    sizes = {layer.expert_bytes for layer in layers}
    assert len(sizes) == 1
    return sizes.pop()


def test_bytes_are_those_of_what_was_read(model: Path) -> None:
    own, less = expert_bytes(model), expert_bytes(coarse.beside(model))
    with engine(model) as run:
        rows_of(run, DECODED)
        plain = run.counts()
    with engine(model, coarse_below=NEARLY_ALL) as run:
        rows_of(run, DECODED)
        found = run.counts()
        assert run.native is not None
        assert run.native.budget_bytes <= run.native.budget_for(run.native.n_slots)
    assert plain["coarse_bytes"] == plain["coarse"] == 0
    n_coarse = found["coarse_bytes"] // less
    assert n_coarse > 0
    assert found["bytes_read"] == n_coarse * less + (found["misses"] - n_coarse) * own
    assert found["bytes_read"] < plain["bytes_read"]
    assert found["weighed"] >= found["coarse"] >= n_coarse


def test_the_same_state_gives_the_same_answer_and_off_gives_the_models_own(model: Path) -> None:
    runs = []
    for _ in range(2):
        with engine(model, cache="30%", coarse_below=0.4) as run:
            rows = [rows_of(run, DECODED), rows_of(run, DECODED)]
            counts = run.counts()
        runs.append((rows, {n: counts[n] for n in COUNTED}))
    assert (runs[0][0][0] == runs[1][0][0]).all()
    assert (runs[0][0][1] == runs[1][0][1]).all()
    assert runs[0][1] == runs[1][1]
    with engine(model, cache="30%") as run:
        assert not (rows_of(run, DECODED) == runs[0][0][0]).all()


def test_a_whole_copy_is_used_and_a_prompt_reads_whole_ones(model: Path) -> None:
    tokens = [(37 * i + 11) % 200 + 5 for i in range(20)]
    with engine(model) as run:
        expected = [run.evaluate(tokens), *(run.evaluate([t], reset=False) for t in DECODED[:8])]
    with engine(model, cache="100%", coarse_below=NEARLY_ALL) as run:
        rows_of(run, DECODED)  # leaves coarse copies behind
        before = run.counts()
        assert before["coarse_bytes"] > 0
        # With room for everything, the prompt leaves whole copies of what it used.
        found = [run.evaluate(tokens)]
        assert run.counts()["coarse_bytes"] == before["coarse_bytes"]
        again = [run.evaluate(tokens)]
        after = run.counts()
        assert after["misses"] == run.counts()["misses"]
    assert (found[0] == expected[0]).all()
    assert (again[0] == expected[0]).all()


def test_steps_of_several_conversations_read_whole_ones(model: Path) -> None:
    """What one alone has left coarse is read again, so their answers are those without loss."""
    found = []
    for settings in ({}, {"coarse_below": NEARLY_ALL}):
        with batch_of(model, 2, group=ALL, prefetch="off", **settings) as batch:
            heard = [join(batch, prompt(5, 2), 8, logprobs=1000)[0]]
            run_all(batch)
            before = batch._loaded.counts()
            heard += [join(batch, prompt(9, which), 8, logprobs=1000)[0] for which in (0, 1)]
            run_all(batch)
            after = batch._loaded.counts()
        found.append([each.logprobs for each in heard])
    assert before["coarse"] > 0
    assert after["weighed"] > before["weighed"]
    assert after["coarse"] == before["coarse"]
    assert found[0][0] != found[1][0]
    assert found[0][1:] == found[1][1:]


def test_a_share_that_no_expert_is_below_changes_no_bit(model: Path) -> None:
    with engine(model) as run:
        expected = rows_of(run, DECODED)
    with engine(model, coarse_below=1e-9) as run:
        assert (rows_of(run, DECODED) == expected).all()
        assert run.counts()["coarse"] == 0


def test_together_with_the_other_means(model: Path) -> None:
    with engine(model, coarse_below=0.5, skip_cold=0.1, swap_near=0.3) as run:
        list(run.generate([TOKEN], max_tokens=24, temperature=0))
        stats = run.stats()
        assert "coarse_below 0.5" in str(stats.lossy)
        assert stats["lossy"]["coarse"] > 0
        assert "% coarse" in run.answer.line(True)


def test_a_read_that_fails_names_the_coarse_file(model: Path) -> None:
    with engine(model, coarse_below=NEARLY_ALL) as run:
        run.evaluate([TOKEN])
        assert run.native is not None
        run.native.set_faults(_core.FaultPlan(range_file=1, range_bytes=1 << 40))
        with pytest.raises(ReadError, match=r"expert \d+, \w+, at offset \d+ of .*m\.coarse\.gguf"):
            rows_of(run, DECODED)
        run.native.set_faults(_core.FaultPlan())
        rows_of(run, DECODED)


def test_a_file_that_is_changed_meanwhile_is_noticed(folder: Path) -> None:
    path = same_type(folder, "qwen3moe", "changed")
    with engine(path, coarse_below=NEARLY_ALL) as run:
        list(run.generate([TOKEN], max_tokens=2, temperature=0))
        file = coarse.beside(path)
        file.write_bytes(bytes(file.stat().st_size))
        with pytest.raises(ReadError, match=r"changed\.coarse\.gguf"):
            list(run.generate([TOKEN], max_tokens=2, temperature=0))


def refused(path: Path, error: type[Exception], match: str, **settings: Any) -> None:
    with pytest.raises(error, match=match):
        engine(path, **{"coarse_below": 0.5, **settings}).close()


def test_files_that_are_not_the_models_coarse_experts_are_refused(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    shutil.copy(model, path)
    refused(path, InputError, r"no coarse experts at .*x\.coarse\.gguf: `remoe-edge convert coarse")
    refused(path, InputError, "is no file of coarse experts", coarse=model)
    other = same_type(tmp_path, "qwen3moe", "other", seed=1)
    refused(path, InputError, "from another model", coarse=coarse.beside(other))
    good = coarse.beside(model).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(good[:-1])
    refused(path, ModelError, "damaged.gguf", coarse=damaged)
    damaged.write_bytes(good[: len(good) // 2])
    refused(path, ModelError, "damaged.gguf", coarse=damaged)
    damaged.write_bytes(good[:-100] + bytes(100))
    refused(path, ModelError, "is damaged", coarse=damaged)
    damaged.write_bytes(b"")
    refused(path, RemoeError, "damaged.gguf", coarse=damaged)
    with engine(path, coarse_below=0.5, coarse=coarse.beside(model)) as run:
        rows_of(run, DECODED[:4])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"coarse_below": 1}, "coarse_below is a share"),
        ({"coarse_below": 0.1, "repack": True}, "repack"),
        ({"coarse_below": 0.1, "stream": False}, "need streaming"),
        ({"coarse_below": 0.1, "draft": "on"}, "draft"),
        ({"coarse_below": 0.1, "prefetch": "on"}, "prefetch off"),
        ({"coarse_below": 0.1, "peers": "127.0.0.1:7777"}, "peers"),
        ({"coarse": 7}, "coarse is the path"),
        ({"coarse": ""}, "coarse is the path"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EngineSettings(**settings)


def test_it_is_not_reproducible(model: Path) -> None:
    with pytest.raises(InputError, match="not reproducible"):
        Engine(model, coarse_below=0.5, reproducible=True)


def test_a_file_that_nothing_would_read_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match="coarse is used with coarse_below or quality_loss"):
        Engine(model, coarse=coarse.beside(model))


def test_coarse_experts_are_not_overwritten(model: Path) -> None:
    for settings in ({}, {"coarse": coarse.beside(model)}):
        with pytest.raises(InputError, match=r"m\.coarse\.gguf"):
            Engine(model, coarse_below=0.5, telemetry=coarse.beside(model), **settings)
    coarse.read_record(coarse.beside(model))


def test_the_command(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.gguf"
    done = CliRunner().invoke(
        command, ["coarse", str(model), "--type", "IQ4_NL", "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert coarse.read_record(output).type == "IQ4_NL"
    for arguments, said in (
        (["--type", "Q9"], "no type 'Q9'"),
        (["--type", "Q4_0", "-o", str(model)], "give another output"),
    ):
        done = CliRunner().invoke(command, ["coarse", str(model), "-o", str(output), *arguments])
        assert done.exit_code != 0
        assert said in f"{done.output}{done.exception}"
    smaller = tiny_moe.make(tmp_path / "q.gguf", "qwen3moe", "Q4_0")
    for name in ("Q8_0", "IQ4_NL"):  # more, and as many
        with pytest.raises(InputError, match="takes no fewer bytes than Q4_0.*coarser --type"):
            write_coarse(smaller, name, tmp_path / "d.gguf")
    with pytest.raises(InputError, match="dense model"):
        write_coarse(tiny_dense.make(folder / "dense.gguf"), "Q4_0", tmp_path / "d.gguf")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.gguf", "q.gguf"]


def test_a_price_list_knows_them_and_quality_loss_chooses_them(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(model, path)
    shutil.copy(coarse.beside(model), coarse.beside(path))
    text = tmp_path / "words.txt"
    text.write_text("a few words of a text that is not long, and once more. " * 4)
    done = CliRunner().invoke(cli, [
        "price", str(path), "--text", str(text), "--window", "12", "--data-tokens", "24",
        "--most-loss", "0%", "--cache", "30%", "-t", "1",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    place = price_list.place(path, None)
    plain = json.loads(place.read_text())
    assert plain["coarse"]["type"] == "Q4_0"
    own = [each for each in plain["prices"] if each["setting"]["coarse_below"]]
    assert own
    assert own[0]["coarse"] > 0
    assert own[0]["bytes_per_token"] < plain["prices"][0]["bytes_per_token"]
    own[0].update(bytes_per_token=1, divergence={"words": 0}, low={"words": 0})
    place.write_text(json.dumps(plain))

    settings: dict[str, Any] = {"n_ctx": 64, "threads": 1, "cache": "30%", "quality_loss": "1%"}
    with Engine(path, **settings) as run:
        assert run.settings.coarse_below == own[0]["setting"]["coarse_below"]
    moved = coarse.beside(path).rename(tmp_path / "elsewhere.gguf")
    with Engine(path, coarse=moved, **settings) as run:
        assert run.settings.coarse_below > 0
    with pytest.raises(InputError, match=r"no coarse experts at .*`remoe-edge convert coarse"):
        Engine(path, **settings)
    write_coarse(path, "Q5_0", coarse.beside(path))
    with pytest.raises(InputError, match=r"\(Q5_0\) is not the file .* measured \(Q4_0\)"):
        Engine(path, **settings)
    with Engine(path, reproducible=True, **settings) as run:
        assert run.settings.coarse_below == 0
    for output in (coarse.beside(path), moved):
        done = CliRunner().invoke(cli, [
            "price", str(path), "--text", str(text), "--coarse", str(output), "-o", str(output),
        ])  # fmt: skip
        assert done.exit_code == 1
        assert "give another output" in done.output
