"""Which files of a Hugging Face folder count, router names under wrappers, and sets that are replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from remoe_edge.cli.convert import command
from remoe_edge.convert.export_hf import export_hf
from remoe_edge.convert.merge import merge
from remoe_edge.convert.names import CheckpointNames
from remoe_edge.convert.routers import convert_routers
from remoe_edge.errors import InputError, ReadError, UnsupportedError
from remoe_edge.files import atomic
from remoe_edge.files.overlay import load_overlay
from remoe_edge.files.safetensors_file import SafetensorsFile
from remoe_edge.inspect.info import describe
from remoe_edge.native import _core
from test_convert import Case, leftovers, write_safetensors

GATES = [f"model.layers.{i}.mlp.gate.weight" for i in range(2)]
INDEX = "model.safetensors.index.json"


class Folder:
    """A folder with two shards, and routers that are tuned for it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.out = folder / "hf", folder / "out"
        self.path.mkdir()
        (self.path / "config.json").write_text("{}")
        self.shards = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
        for gate, shard in zip(GATES, self.shards, strict=True):
            self.shard(shard, gate)
        self.tuned = write_safetensors(
            folder / "tuned.safetensors",
            {gate: np.ones((10, 16), np.float32) for gate in GATES},
            {"format": "remoe-edge-routers", "version": "1", "architecture": "qwen3moe"},
        )

    def shard(self, name: str, *gates: str, dtype: type = np.float32) -> None:
        write_safetensors(self.path / name, {gate: np.zeros((10, 16), dtype) for gate in gates})

    def index(self, **other: object) -> None:
        table: dict[str, Any] = {**dict(zip(GATES, self.shards, strict=True)), **other}
        (self.path / INDEX).write_text(json.dumps({"weight_map": table}))

    def export(self) -> list[str]:
        left_out = export_hf(self.path, self.tuned, self.out)
        for gate, shard in zip(GATES, self.shards, strict=True):
            assert SafetensorsFile.open(self.out / shard).float32(gate).mean() == 1
        return left_out

    def refusal(self) -> str:
        with pytest.raises((InputError, UnsupportedError)) as said:
            export_hf(self.path, self.tuned, self.out)
        assert not self.out.exists()
        return str(said.value)


@pytest.fixture
def hf(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_stale_shards_and_other_forms_of_the_weights_are_left_out(hf: Folder) -> None:
    hf.index()
    hf.shard("zz-old.safetensors", *GATES)
    hf.shard("consolidated.safetensors", *GATES)
    (hf.path / "junk.safetensors").write_bytes(b"no safetensors")  # not even looked at
    assert hf.export() == ["consolidated.safetensors", "junk.safetensors", "zz-old.safetensors"]
    assert sorted(path.name for path in hf.out.iterdir()) == ["config.json", *hf.shards, INDEX]


def test_the_command_names_what_it_leaves_out(hf: Folder) -> None:
    hf.index()
    hf.shard("zz-old.safetensors", *GATES)
    said = CliRunner().invoke(
        command, ["export-hf", str(hf.path), str(hf.tuned), "-o", str(hf.out)]
    )
    assert said.exit_code == 0
    assert "zz-old.safetensors" in said.stderr
    assert said.stdout.strip() == str(hf.out)


def test_an_index_that_names_a_missing_shard(hf: Folder) -> None:
    hf.index(**{"lm_head.weight": "model-00003-of-00003.safetensors"})
    assert "model-00003-of-00003.safetensors is missing" in hf.refusal()


def test_an_index_that_names_a_tensor_its_shard_lacks(hf: Folder) -> None:
    hf.index(**{"lm_head.weight": hf.shards[0]})
    assert "'lm_head.weight'" in hf.refusal()


@pytest.mark.parametrize("name", ["../hf/x.safetensors", "/etc/passwd", "", "..", 3, None])
def test_an_index_that_points_elsewhere(hf: Folder, name: object) -> None:
    hf.index(**{"lm_head.weight": name})
    assert INDEX in hf.refusal()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\0"])
def test_a_damaged_index(hf: Folder, text: str) -> None:
    (hf.path / INDEX).write_text(text)
    assert INDEX in hf.refusal()


def test_without_an_index_a_shard_too_few(hf: Folder) -> None:
    (hf.path / hf.shards[1]).unlink()
    assert hf.shards[1] in hf.refusal()


def test_without_an_index_a_tensor_in_two_shards(hf: Folder) -> None:
    hf.shard("zz-old.safetensors", GATES[0])
    said = hf.refusal()
    assert "zz-old.safetensors" in said
    assert hf.shards[0] in said


def test_without_an_index_the_whole_model_counts(hf: Folder) -> None:
    hf.shard("model.safetensors", *GATES)
    hf.shards = ["model.safetensors"] * 2
    assert len(hf.export()) == 2


def test_only_consolidated(hf: Folder) -> None:
    for shard in hf.shards:
        (hf.path / shard).unlink()
    hf.shard("consolidated.safetensors", *GATES)
    hf.shards = ["consolidated.safetensors"] * 2
    assert hf.export() == []


def test_a_router_under_two_names(hf: Folder) -> None:
    hf.shard(hf.shards[0], GATES[0], "language_model." + GATES[0])
    assert "same router" in hf.refusal()


def test_values_that_the_shards_type_cannot_hold(hf: Folder) -> None:
    hf.shard(hf.shards[0], GATES[0], dtype=np.float16)
    values = {gate: np.full((10, 16), 1e30, np.float32) for gate in GATES}
    write_safetensors(hf.tuned, values, {"architecture": "qwen3moe"})
    assert GATES[0] in hf.refusal()


@pytest.mark.parametrize("format", ["pt", "np", "mlx", "flax", "tf"])
def test_metadata_of_other_libraries(hf: Folder, format: str) -> None:
    values = {gate: np.ones((10, 16), np.float32) for gate in GATES}
    write_safetensors(
        hf.tuned, values, {"format": format, "version": "2.4.1", "architecture": "qwen3moe"}
    )
    assert hf.export() == []


def test_two_entries_of_one_name_and_entries_that_overlap(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    twice = '{"a": %s, "a": %s}' % (json.dumps(entry), json.dumps(entry))  # noqa: UP031
    both = json.dumps({"a": entry, "b": {**entry, "data_offsets": [4, 12]}})
    for text, words in ((twice, "twice"), (both, "overlap")):
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(12))
        with pytest.raises(InputError, match=words):
            SafetensorsFile.open(path)


@pytest.mark.parametrize(
    ("arch", "key", "block"),
    [
        ("qwen3moe", "base_model.model.model.layers.0.mlp.gate.weight", 0),
        ("qwen3moe", "module.model.layers.1.mlp.gate.weight", 1),
        ("qwen3moe", "_orig_mod.model.layers.1.mlp.gate.weight", 1),
        ("qwen3moe", "_fsdp_wrapped_module.model.layers.1.mlp.gate.weight", 1),
        ("qwen3moe", "model.language_model.layers.1.mlp.gate.weight", 1),
        ("qwen35moe", "model.language_model.layers.0.mlp.gate.weight", 0),
        ("qwen3moe", "language_model.model.layers.1.mlp.gate.weight", 1),
        ("qwen3moe", "layers.1.mlp.gate.weight", 1),
        ("qwen3moe", "base_model.model.model.layers.1.mlp.gate.modules_to_save.default.weight", 1),
        ("qwen3moe", "base_model.model.model.layers.1.mlp.gate.modules_to_save.weight", 1),
        ("qwen3moe", "base_model.model.model.layers.1.mlp.gate.base_layer.weight", 1),
        ("llama4", "language_model.model.layers.1.feed_forward.router.weight", 1),
        ("llama", "base_model.model.model.layers.2.block_sparse_moe.gate.weight", 2),
        ("dbrx", "module.transformer.blocks.1.ffn.router.layer.weight", 1),
    ],
)
def test_names_under_wrappers(arch: str, key: str, block: int) -> None:
    names = CheckpointNames.covering(arch, [key])
    assert names.to_gguf(key) == f"blk.{block}.ffn_gate_inp.weight"


@pytest.mark.parametrize(
    "key",
    [
        "visual.layers.0.mlp.gate.weight",
        "vision_tower.encoder.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.gate.lora_A.default.weight",
        "mtp.layers.0.mlp.gate.weight",
        "model",
        "",
        ".",
    ],
)
def test_names_that_only_look_alike(key: str) -> None:
    assert CheckpointNames.covering("qwen3moe", [key]).to_gguf(key) is None


def test_an_adapters_copy_from_before_training_is_passed_over(tmp_path: Path) -> None:
    case = Case(tmp_path)
    wrapped: dict[str, Any] = {}
    for i, values in enumerate(case.values.values()):
        stem = f"base_model.model.model.layers.{i}.mlp.gate."
        wrapped[stem + "modules_to_save.default.weight"] = values
        wrapped[stem + "original_module.weight"] = np.zeros_like(values)
    convert_routers(case.retune(wrapped), case.base_path, case.overlay)
    assert load_overlay(case.overlay, case.base) == {
        name: values.tobytes() for name, values in case.values.items()
    }


# --- several outputs ---


def old_set(case: Case) -> tuple[list[Path], list[bytes]]:
    outputs = [case.folder / f"out-0000{i + 1}-of-00002.gguf" for i in range(2)]
    convert_routers(case.tuned, case.base_path, case.overlay)
    merge(case.base_path, case.overlay, outputs[0])
    return outputs, [path.read_bytes() for path in outputs]


@pytest.fixture
def split(tmp_path: Path) -> Case:
    return Case(tmp_path, n_split=2)


@pytest.mark.parametrize("fails_at", range(4))
def test_a_rename_that_fails_leaves_the_old_set(
    split: Case, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, before = old_set(split)
    split.values = {name: values * 2 for name, values in split.values.items()}
    split.retune(split.values)
    convert_routers(split.tuned, split.base_path, split.overlay)
    calls, rename = [0], os.rename

    def flaky(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == fails_at + 1:
            raise PermissionError(1, "Operation not permitted", os.fspath(target))
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "rename", flaky)
        with pytest.raises(ReadError):
            merge(split.base_path, split.overlay, outputs[0])
    assert [path.read_bytes() for path in outputs] == before
    assert leftovers(split.folder) == []
    assert not [path for path in split.folder.iterdir() if path.name.endswith(".old")]


@pytest.mark.parametrize("dies_at", range(1, 4))
def test_a_crash_between_renames_leaves_no_mixed_set(split: Case, dies_at: int) -> None:
    outputs, before = old_set(split)
    script = f"""
import os
from pathlib import Path
from remoe_edge.convert.merge import merge
rename, calls = os.rename, [0]
def dies(source, target):
    if calls[0] == {dies_at}:
        os._exit(9)
    calls[0] += 1
    rename(source, target)
os.rename = dies
merge(*map(Path, {[str(split.base_path), str(split.overlay), str(outputs[0])]!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=600)
    assert done.returncode == 9
    assert not outputs[0].exists()  # by which a set is found
    with pytest.raises(InputError, match=r"cut short.*\.old"):
        describe(outputs[0])
    kept = [path.read_bytes() for path in split.folder.iterdir() if path.name.endswith(".old")]
    assert before[0] in kept
    merge(split.base_path, split.overlay, outputs[0])  # again: it comes out right
    assert [path.read_bytes() for path in outputs] == before
    _core.ModelFile.open(outputs[0]).check()
