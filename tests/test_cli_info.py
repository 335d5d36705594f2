"""`remoe-edge info`: its numbers against the files themselves and against llama.cpp."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFReader

import tiny_moe
from command_line import run
from random_moe import writer
from random_moe.build import build
from remoe_edge import Engine
from remoe_edge.files import models
from remoe_edge.machine import memory
from remoe_edge.machine.memory import Memory
from remoe_edge.units import MIB

EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|down|up|gate_up)_exps\.weight")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("info") / "tiny.gguf", "qwen3moe", "Q4_0")


def about(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    outcome = run(capsys, "info", path, "--json")
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    result: dict[str, Any] = json.loads(outcome.out)
    return result


@pytest.mark.parametrize(
    ("arch", "quant", "n_split"),
    [
        ("qwen3moe", "Q4_0", 1),
        ("deepseek2", "Q8_0", 1),
        ("gpt-oss", "MXFP4", 1),
        ("olmoe", "F16", 3),
    ],
)
def test_the_sizes_are_those_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str, quant: str, n_split: int
) -> None:
    first = tiny_moe.make(tmp_path / "m.gguf", arch, quant, n_split=n_split)
    files = sorted(tmp_path.iterdir())
    tensors = [tensor for path in files for tensor in GGUFReader(path).tensors]
    experts = [tensor for tensor in tensors if EXPERTS.fullmatch(tensor.name)]
    expert_bytes = sum(int(tensor.n_bytes) for tensor in experts)
    shape = tiny_moe.shape_of(arch, quant)

    told = about(capsys, first)
    assert told["kind"] == "experts"
    assert told["architecture"] == arch
    assert told["layers"] == shape.n_layer
    assert [(Path(each["path"]).name, each["bytes"]) for each in told["shards"]] == [
        (path.name, path.stat().st_size) for path in files
    ]
    assert told["dense_bytes"] == sum(int(tensor.n_bytes) for tensor in tensors) - expert_bytes
    held = told["experts"]
    n_layers = len({tensor.name.split(".")[1] for tensor in experts})
    assert (held["layers"], held["per_layer"], held["used_per_token"], held["total"]) == (
        n_layers, shape.n_expert, shape.n_expert_used, n_layers * shape.n_expert,
    )  # fmt: skip
    assert held["types"] == {quant: expert_bytes}
    assert held["bytes"] == expert_bytes
    assert held["bytes_each_min"] == held["bytes_each_max"] == expert_bytes // held["total"]
    assert held["bytes_per_token"] == held["bytes_each_max"] * n_layers * shape.n_expert_used
    assert held["slot_bytes"] >= held["bytes_each_max"]
    assert held["floor_bytes"] >= held["slot_bytes"] * shape.n_expert_used
    assert re.fullmatch("[0-9a-f]{64}", told["fingerprint"])


# One of each kind of attention: plain, latent, windowed, and beside layers that have none.
@pytest.mark.parametrize(
    "arch",
    ["qwen3moe", "llama", "olmoe", "deepseek2", "granitemoe", "gpt-oss", "gemma4", "llama4", "afmoe",
     "granitehybrid", "qwen3next", "qwen35moe", "lfm2moe", "nemotron_h_moe"],
)  # fmt: skip
def test_the_kv_cache_is_what_llama_cpp_reserves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str
) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", arch, "Q8_0")
    told = about(capsys, path)["kv_bytes_per_1k_tokens"]
    n_ctx = 1024
    with Engine(path, n_ctx=n_ctx, threads=1) as engine:
        reserved = engine.stats()["buffers"]["KV"]
    # llama.cpp says its size in MiB with two digits.
    assert told * n_ctx / 1000 == pytest.approx(reserved, abs=0.006 * MIB)


def test_the_floor_it_names_runs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floor = about(capsys, model)["experts"]["floor_cache"]
    ask = ("chat", "-m", model, "-p", "x", "-n", "2", "--cache")
    assert run(capsys, *ask, floor).code == 0
    below = int(floor.removesuffix("KiB")) - 1
    assert "below the floor" in run(capsys, *ask, f"{below}KiB").error()


def test_what_fits_follows_the_memory_there_is(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = about(capsys, model)
    needed = whole["dense_bytes"] + whole["here"]["kv_bytes"] + whole["here"]["reserve_bytes"]
    slot_bytes = whole["experts"]["slot_bytes"]
    for slots, runs in ((7, True), (30, True), (40, True), (2, False)):
        room = Memory(needed + slots * slot_bytes + slot_bytes // 2, "a small board", None)
        monkeypatch.setattr(memory, "available", lambda room=room: room)
        here = about(capsys, model)["here"]
        assert here["auto_slots"] == min(slots, 30)
        assert here["share_of_experts"] == pytest.approx(min(slots, 30) / 30)
        assert here["fits_whole"] == (slots >= 30)
        assert here["runs"] == runs
        text = run(capsys, "info", model).out
        assert "by a small board" in text
        assert ("not even the floor" in text) == (not runs)


def test_people_read_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "info", model)
    assert outcome.code == 0
    for line in (
        "architecture    qwen3moe, 3 layers",
        "experts         3 layers of 10, 4 used by a token",
        "expert weights  0.59 MiB (Q4_0)",
    ):
        assert line in outcome.out.splitlines()
    assert re.search(r"floor +0.09 MiB: --cache \d+KiB holds the 4 experts", outcome.out)
    assert "note" not in outcome.out


def test_a_dense_model_has_nothing_to_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tiny_moe.make(tmp_path / "dense.gguf", "deepseek2", "Q8_0", n_dense_lead=3)
    told = about(capsys, dense)
    assert told["kind"] == "dense"
    assert "experts" not in told
    assert told["here"]["fits_whole"] is True
    assert "nothing to stream" in run(capsys, "info", dense).out


def test_marks_of_made_models_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = writer.formats(GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0)
    layout = build("qwen3moe", tiny_moe.shape_of("qwen3moe", "Q8_0"))
    marks = {"remoe_edge.shape_only": True, "remoe_edge.widened_from": "a small one"}
    path = writer.write(tmp_path / "m.gguf", layout, table, seed=0, metadata=marks)[0]
    assert about(capsys, path)["marks"] == {"shape_only": 1, "widened_from": "a small one"}
    text = run(capsys, "info", path).out
    assert "random weights at a published shape" in text
    assert "a small one made wider" in text


def test_an_overlay_says_what_it_is_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "tuned.routers.gguf"
    made = run(capsys, "convert", "extract", model, "-o", overlay)
    assert made.code == 0, made
    told = about(capsys, overlay)
    assert told["kind"] == "routers"
    assert told["base_fingerprint"] == about(capsys, model)["fingerprint"]
    assert told["routers"] == 3
    assert "to be used with --routers" in run(capsys, "info", overlay).out
    used = run(capsys, "chat", "-m", model, "-p", "x", "-n", "2", "--routers", overlay)
    assert used.code == 0, used


def test_without_a_name_it_is_the_shipped_model(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "folders", lambda: [model.parent])
    assert str(model) in run(capsys, "info", "--json").out


def test_what_is_no_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(bytes(64))
    assert str(junk) in run(capsys, "info", junk).error()
    assert "no model at" in run(capsys, "info", tmp_path / "none.gguf").error()
