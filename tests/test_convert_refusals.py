"""Routers that cannot be converted: one clear line, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from command_line import run
from remoe_edge.convert.extract import extract
from remoe_edge.convert.names import CheckpointNames
from remoe_edge.convert.routers import convert_routers
from remoe_edge.errors import InputError, RemoeError, UnsupportedError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.overlay import load_overlay
from remoe_edge.files.own_gguf import open_model
from remoe_edge.files.safetensors_file import SafetensorsFile
from remoe_edge.native import _core
from router_cases import (
    Arrays,
    Case,
    leftovers,
    write_safetensors,
)
from tiny_moe import make


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def refuse(case: Case, words: str, kind: type[RemoeError] = InputError) -> None:
    with pytest.raises(kind, match=words) as caught:
        convert_routers(case.tuned, case.base_path, case.overlay)
    assert "\n" not in str(caught.value)
    assert not case.overlay.exists()
    assert not leftovers(case.folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(case: Case, bad: float) -> None:
    name = next(iter(case.values))
    case.values[name][1, 2] = bad
    case.retune(case.values)
    refuse(case, f"'{name}' has 1 values that are NaN or infinite")


def test_double_that_overflows_to_infinity(case: Case) -> None:
    name = next(iter(case.values))
    case.retune({**case.values, name: case.values[name].astype(np.float64) * 1e300})
    refuse(case, "NaN or infinite")


def test_missing_layers_are_named(case: Case) -> None:
    names = list(case.values)
    case.retune({name: case.values[name] for name in names[:1]})
    missing = sorted(int(name.split(".")[1]) for name in names[1:])
    refuse(case, f"lacks the routers of layers {', '.join(map(str, missing))} ")


def test_transposed_shape(case: Case) -> None:
    name = next(iter(case.values))
    case.retune({**case.values, name: np.ascontiguousarray(case.values[name].T)})
    refuse(case, "it is transposed")


def test_other_shape(case: Case) -> None:
    name = next(iter(case.values))
    case.retune({**case.values, name: case.values[name][:-1]})
    refuse(case, name)


def test_another_base(case: Case) -> None:
    case.retune(case.values, base_fingerprint="0" * 64)
    refuse(case, "tuned for another base")


def test_another_architecture(case: Case) -> None:
    case.retune(case.values, architecture="olmoe")
    refuse(case, "'olmoe'.*'qwen3moe'")


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", ""]
)
def test_names_that_are_no_routers(case: Case, name: str) -> None:
    case.retune({**case.values, name: np.zeros((2, 2), np.float32)})
    refuse(case, f"'{name}' is not the name of a router")


def test_router_of_a_layer_the_base_lacks(case: Case) -> None:
    shape = next(iter(case.values.values())).shape
    case.retune({**case.values, "blk.99.ffn_gate_inp.weight": np.zeros(shape, np.float32)})
    refuse(case, r"'blk.99.ffn_gate_inp.weight', which the base model lacks")


def test_the_same_router_twice(case: Case) -> None:
    name = next(iter(case.values))
    key = CheckpointNames.covering("qwen3moe", case.values).from_gguf(name)[0]
    case.retune({**case.values, key: case.values[name]})
    refuse(case, "are the same router")


def test_integer_routers(case: Case) -> None:
    name = next(iter(case.values))
    case.retune({**case.values, name: case.values[name].astype(np.int32)})
    refuse(case, "is I32")


def test_no_tensors(case: Case) -> None:
    case.retune({})
    refuse(case, "holds no tensors")


def test_run_record_that_is_not_json(case: Case) -> None:
    case.retune(case.values, run="{oops")
    refuse(case, "run record is not JSON")


def test_format_of_another_version(case: Case) -> None:
    case.retune(case.values, version="2")
    refuse(case, "version 2", UnsupportedError)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"just some text, long enough to hold a header length",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        (9).to_bytes(8, "little") + b'{"a": 1}\x00',
        (8).to_bytes(8, "little") + b'{"a": 1}',
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little"),
        (28).to_bytes(8, "little") + b'{"__metadata__":{"run":[1]}}',
    ],
)
def test_what_is_no_safetensors_file(case: Case, content: bytes) -> None:
    case.tuned.write_bytes(content)
    refuse(case, "tuned.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2, -1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        [],
    ],
)
def test_damaged_safetensors_entries(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "t.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 8)
    with pytest.raises(InputError, match="'a' is damaged"):
        SafetensorsFile.open(path)


def test_missing_files(case: Case) -> None:
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        convert_routers(case.folder / "nothing.safetensors", case.base_path, case.overlay)
    with pytest.raises(RemoeError, match=r"nothing\.gguf"):
        convert_routers(case.tuned, case.folder / "nothing.gguf", case.overlay)
    with pytest.raises(InputError, match="does not exist"):
        convert_routers(case.tuned, case.base_path, case.folder / "no" / "routers.gguf")
    with pytest.raises(InputError, match="is a folder"):
        convert_routers(case.tuned, case.base_path, case.folder)


def test_dense_base(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "dense.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tuned = write_safetensors(
        tmp_path / "t.safetensors", {"blk.0.ffn_gate_inp.weight": np.zeros((4, 4), np.float32)}
    )
    for work in (
        lambda: convert_routers(tuned, tmp_path / "dense.gguf", tmp_path / "o.gguf"),
        lambda: extract(tmp_path / "dense.gguf", tmp_path / "o.gguf"),
    ):
        with pytest.raises(InputError, match="not a mixture of experts"):
            work()


# --- overlays against bases ----------------------------------------------------------------------


def test_overlay_for_another_base_is_refused(case: Case, tmp_path: Path) -> None:
    case.convert()
    other = _core.ModelFile.open(make(tmp_path / "other.gguf", "qwen3moe", "Q4_0", seed=5))
    with pytest.raises(InputError, match="another base model"):
        load_overlay(case.overlay, other)
    stranger = _core.ModelFile.open(make(tmp_path / "stranger.gguf", "olmoe", "Q4_0"))
    with pytest.raises(InputError, match=r"'qwen3moe'.*'olmoe'"):
        load_overlay(case.overlay, stranger)


def test_a_model_is_no_overlay(case: Case) -> None:
    with pytest.raises(InputError, match="is not a router overlay"):
        load_overlay(case.base_path, case.base)


def forge(case: Case, tensors: Arrays, version: int = 1) -> None:
    """Write an overlay by hand that claims to be for the case's base."""
    writer = gguf.GGUFWriter(case.overlay, case.base.architecture)
    writer.add_uint32("remoe_edge.overlay.version", version)
    writer.add_string("remoe_edge.overlay.base_fingerprint", fingerprint(case.base))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_forged_overlays_are_refused_by_name(case: Case) -> None:
    name = next(iter(case.values))
    forge(case, case.values)
    assert load_overlay(case.overlay, case.base)
    changes: list[tuple[Arrays, str]] = [
        ({k: v for k, v in case.values.items() if k != name}, f"layers 0 .'{name}'"),
        ({**case.values, "output.weight": np.zeros((2, 2), np.float32)}, "'output.weight'"),
        ({**case.values, name: case.values[name].T.copy()}, f"'{name}' is F32"),
        ({**case.values, name: case.values[name].astype(np.float16)}, f"'{name}' is F16"),
        ({**case.values, name: case.values[name] * np.float32(np.nan)}, "NaN"),
    ]
    if not name.startswith("blk.0."):
        changes[0] = (changes[0][0], f"'{name}'")
    for tensors, words in changes:
        forge(case, tensors)
        with pytest.raises(InputError, match=words):
            load_overlay(case.overlay, case.base)
    forge(case, case.values, version=2)
    with pytest.raises(UnsupportedError, match="version 2"):
        load_overlay(case.overlay, case.base)


def test_truncated_overlay(case: Case) -> None:
    case.convert()
    raw = case.overlay.read_bytes()
    case.overlay.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(RemoeError, match=r"routers\.gguf"):
        load_overlay(case.overlay, case.base)


def test_what_is_no_model_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An overlay and coarser experts lie beside models and are GGUFs too."""
    model = make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    overlay, coarse, out = (tmp_path / name for name in ("r.gguf", "c.gguf", "out.gguf"))
    for made, words in ((overlay, ["extract"]), (coarse, ["coarse", "--type", "Q4_0"])):
        assert run(capsys, "convert", *words, model, "-o", made).code == 0
    for words in (
        ["convert", "extract", overlay, "-o", out],
        ["convert", "extract", model, "--base", coarse, "-o", out],
        ["convert", "coarse", overlay, "-o", out],
        ["convert", "coarse", coarse, "--type", "Q2_K", "-o", out],
        ["convert", "dense", coarse, "-o", out],
        ["convert", "merge", coarse, overlay, "-o", out],
        ["plan", overlay],
        ["worker", coarse, "--memory", "10MiB", "--listen", "127.0.0.1:0"],
        ["bench", coarse],
    ):
        said = run(capsys, *words).error()
        assert "is an adapter (" in said, words
        assert "not a model: name the model that it was made for" in said, words
    assert not out.exists()
    for other in (overlay, coarse):
        for refusing in (lambda path: _core.ModelFile.open(str(path)).check(), open_model):
            with pytest.raises(InputError, match="is an adapter"):
                refusing(other)
