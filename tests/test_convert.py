"""Tuned routers: overlays, merged files, extraction and Hugging Face folders, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

import stock
from remoe_edge import Engine
from remoe_edge.cli.convert import command
from remoe_edge.convert.export_hf import export_hf
from remoe_edge.convert.extract import extract
from remoe_edge.convert.merge import merge
from remoe_edge.convert.names import CheckpointNames
from remoe_edge.convert.routers import convert_routers
from remoe_edge.errors import InputError, ReadError, UnsupportedError
from remoe_edge.files import atomic
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.overlay import load_overlay, read_record, write_overlay
from remoe_edge.files.router_tensors import canonical, is_router, routers_of
from remoe_edge.files.safetensors_file import SafetensorsFile
from remoe_edge.files.tensor_values import read_tensor
from remoe_edge.native import _core
from router_cases import (
    Arrays,
    Case,
    checkpoint_values,
    leftovers,
    tuned_values,
    write_safetensors,
)
from tiny_moe import ARCHS, make


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.mark.parametrize("arch", ARCHS)
def test_round_trip_is_bit_exact(arch: str, tmp_path: Path) -> None:
    """safetensors -> overlay -> merged file -> overlay, for every architecture."""
    case = Case(tmp_path, arch)
    assert case.values, "the architecture has routers"
    tensors = case.convert()
    assert tensors == {name: array.tobytes() for name, array in case.values.items()}
    # The overlay is a GGUF that any reader opens.
    reader = gguf.GGUFReader(case.overlay)
    assert {t.name: t.data.tobytes() for t in reader.tensors} == tensors
    assert str(reader.fields["general.architecture"].contents()) == case.base.architecture
    assert str(reader.fields["general.type"].contents()) == "adapter"

    merged = tmp_path / "merged.gguf"
    assert merge(case.base_path, case.overlay, merged) == [merged]
    # Byte by byte: routers as tuned, everything else as in the base.
    expected = bytearray(case.base_path.read_bytes())
    for name, raw in tensors.items():
        tensor = case.base.find(name)
        assert tensor is not None
        expected[tensor.offset : tensor.offset + tensor.n_bytes] = raw
    assert merged.read_bytes() == bytes(expected)
    assert fingerprint(_core.ModelFile.open(merged)) == fingerprint(case.base)

    again = tmp_path / "again.gguf"
    extract(merged, again, case.base_path)
    assert load_overlay(again, case.base) == tensors
    extract(merged, again)  # without the base: the same fingerprint all the same
    assert load_overlay(again, case.base) == tensors


@pytest.mark.parametrize("arch", ARCHS)
def test_checkpoint_names_lead_to_the_same_routers(arch: str, tmp_path: Path) -> None:
    case = Case(tmp_path, arch)
    architecture = case.base.architecture
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        with pytest.raises(UnsupportedError, match=architecture):
            CheckpointNames.covering(architecture, case.values)
        return
    names = CheckpointNames.covering(architecture, case.values)
    for name in case.values:
        keys = names.from_gguf(name)
        assert keys
        for key in keys:
            assert names.to_gguf(key) == canonical(name), key
    by_gguf_name = case.convert()
    case.retune(checkpoint_values(case.base, case.values))
    assert case.convert() == by_gguf_name


def test_names_of_published_checkpoints() -> None:
    for architecture, key, name in [
        ("qwen3moe", "model.layers.7.mlp.gate.weight", "blk.7.ffn_gate_inp.weight"),
        ("llama", "model.layers.7.block_sparse_moe.gate.weight", "blk.7.ffn_gate_inp.weight"),
        ("gpt-oss", "model.layers.7.mlp.router.bias", "blk.7.ffn_gate_inp.bias"),
        ("deepseek2", "model.layers.7.mlp.gate.e_score_correction_bias", "blk.7.exp_probs_b"),
        ("lfm2moe", "model.layers.7.feed_forward.expert_bias", "blk.7.exp_probs_b"),
        ("qwen3moe", "model.layers.7.mlp.experts.0.gate_proj.weight", None),
        ("qwen2moe", "model.layers.7.mlp.shared_expert_gate.weight", None),
        ("qwen3moe", "lm_head.weight", None),
    ]:
        assert CheckpointNames.covering(architecture, [key]).to_gguf(key) == name


def test_shared_expert_gates_are_no_routers() -> None:
    assert is_router("blk.0.ffn_gate_inp.weight")
    assert is_router("blk.0.exp_probs_b.bias")
    assert is_router("blk.0.exp_probs_b")
    assert not is_router("blk.0.ffn_gate_inp_shexp.weight")
    assert not is_router("blk.0.ffn_gate_inp.scale")
    assert not is_router("blk.00.ffn_gate_inp.weight")
    assert not is_router("blk.0.ffn_gate_exps.weight")


def test_biases_that_were_not_tuned_are_the_bases(tmp_path: Path) -> None:
    case = Case(tmp_path, "gpt-oss")
    biases = {name for name in case.values if name.endswith(".bias")}
    assert biases
    case.retune({name: array for name, array in case.values.items() if name not in biases})
    for name, raw in case.convert().items():
        tensor = case.base.find(name)
        assert tensor is not None
        assert (raw == read_tensor(case.base, tensor)) == (name in biases)


def test_overlay_records_base_and_run(case: Case) -> None:
    case.convert()
    record, _ = read_record(case.overlay)
    assert record.architecture == "qwen3moe"
    assert record.base_fingerprint == fingerprint(case.base)
    assert json.loads(record.run) == {"steps": 3}


def test_strength_lies_between_base_and_tuned(case: Case) -> None:
    whole = case.convert()
    for strength in (0.25, 1.5):
        convert_routers(case.tuned, case.base_path, case.overlay, strength)
        part = load_overlay(case.overlay, case.base)
        for name, tensor in routers_of(case.base).items():
            own = np.frombuffer(read_tensor(case.base, tensor), dtype="<f4")
            tuned = np.frombuffer(whole[name], dtype="<f4")
            expected = own + np.float32(strength) * (tuned - own)
            assert np.array_equal(np.frombuffer(part[name], dtype="<f4"), expected)
        run = json.loads(read_record(case.overlay)[0].run)
        assert run == {"steps": 3, "strength": strength}


@pytest.mark.parametrize("strength", [0.0, -1.0, 2.5, float("nan")])
def test_strength_out_of_range(case: Case, strength: float) -> None:
    with pytest.raises(InputError, match="strength must be above 0"):
        convert_routers(case.tuned, case.base_path, case.overlay, strength)
    assert not case.overlay.exists()


def test_half_precision_routers_are_widened_exactly(case: Case) -> None:
    name = "blk.0.ffn_gate_inp.weight"
    if name not in case.values:
        name = next(iter(case.values))
    for dtype in ("F16", "BF16"):
        wide = case.values[name].astype(np.float16).astype(np.float32)
        stored: npt.NDArray[Any] = wide.astype(np.float16)
        if dtype == "BF16":
            bits = case.values[name].view(np.uint32) & 0xFFFF0000
            wide, stored = bits.view(np.float32), (bits >> 16).astype(np.uint16)
        case.retune({**case.values, name: stored})
        assert case.convert()[name] == wide.tobytes()


def rewrite(source: Path, target: Path, changed: dict[str, gguf.GGMLQuantizationType]) -> Path:
    """Copy a small GGUF with some F32 tensors in another type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        kind = changed.get(tensor.name, tensor.tensor_type)
        data = tensor.data
        if kind != tensor.tensor_type:
            data = gguf.quants.quantize(tensor.data, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_overlay_has_the_bases_types(case: Case, kind: str) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    other = rewrite(
        case.base_path, case.folder / "other.gguf", dict.fromkeys(case.values, quantised)
    )
    base = _core.ModelFile.open(other)
    case.retune(case.values, base_fingerprint=fingerprint(base))
    convert_routers(case.tuned, other, case.overlay)
    for name, raw in load_overlay(case.overlay, base).items():
        assert raw == gguf.quants.quantize(case.values[name], quantised).tobytes()


def test_a_type_that_cannot_be_encoded_is_named(case: Case) -> None:
    name = next(iter(case.values))
    other = case.folder / "other.gguf"
    shutil.copy(case.base_path, other)
    raw = bytearray(other.read_bytes())
    at = raw.index(name.encode()) + len(name) + 4 + 8 * 2  # past the dimensions: the type
    raw[at : at + 4] = int(gguf.GGMLQuantizationType.F16).to_bytes(4, "little")
    other.write_bytes(bytes(raw))
    _core.ModelFile.open(other)
    raw[at : at + 4] = int(gguf.GGMLQuantizationType.I32).to_bytes(4, "little")
    other.write_bytes(bytes(raw))
    case.retune(case.values, base_fingerprint="")
    with pytest.raises(UnsupportedError, match=name):
        convert_routers(case.tuned, other, case.overlay)
    assert not case.overlay.exists()


def test_fingerprint_sees_everything_but_routers(case: Case) -> None:
    original = fingerprint(case.base)
    assert original == fingerprint(_core.ModelFile.open(case.base_path))
    raw = case.base_path.read_bytes()
    for tensor in case.base.tensors:
        changed = bytearray(raw)
        changed[tensor.offset] ^= 1
        changed[tensor.offset + tensor.n_bytes - 1] ^= 1
        path = case.folder / "changed.gguf"
        path.write_bytes(changed)
        assert (fingerprint(_core.ModelFile.open(path)) == original) == is_router(tensor.name)


def test_fingerprint_does_not_depend_on_splitting(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    whole = make(tmp_path / "m.gguf", "qwen3moe", "Q4_0")
    split = make(tmp_path / "split" / "m.gguf", "qwen3moe", "Q4_0", n_split=3)
    assert fingerprint(_core.ModelFile.open(whole)) == fingerprint(_core.ModelFile.open(split))


# --- extract -------------------------------------------------------------------------------------


def test_extract_with_another_base(case: Case, tmp_path: Path) -> None:
    case.convert()
    merged = tmp_path / "merged.gguf"
    merge(case.base_path, case.overlay, merged)
    other = make(tmp_path / "other.gguf", "qwen3moe", "Q8_0")
    output = tmp_path / "extracted.gguf"
    with pytest.raises(InputError, match=r"is not the base.*Q4_0 against Q8_0.*--rebase"):
        extract(merged, output, other)
    assert not output.exists()
    extract(merged, output, other, rebase=True)
    assert load_overlay(output, _core.ModelFile.open(other)) == load_overlay(
        case.overlay, case.base
    )
    with pytest.raises(InputError, match="give --base"):
        extract(merged, output, rebase=True)
    stranger = make(tmp_path / "stranger.gguf", "olmoe", "Q4_0")
    with pytest.raises(InputError, match=r"'qwen3moe'.*'olmoe'"):
        extract(merged, output, stranger)


def test_extract_refuses_values_that_are_not_finite(case: Case) -> None:
    name = next(iter(case.values))
    tensor = case.base.find(name)
    assert tensor is not None
    with open(case.base_path, "r+b") as file:
        file.seek(tensor.offset)
        file.write(np.float32(np.inf).tobytes())
    with pytest.raises(InputError, match=f"'{name}' has 1 values"):
        extract(case.base_path, case.overlay)


# --- merge: never over an input, never half a file ------------------------------------------------


def test_merge_keeps_shards(tmp_path: Path) -> None:
    case = Case(tmp_path, n_split=3)
    tensors = case.convert()
    with pytest.raises(InputError, match=r"end its name in -00001-of-00003\.gguf"):
        merge(case.base_path, case.overlay, tmp_path / "merged.gguf")
    outputs = merge(case.base_path, case.overlay, tmp_path / "merged-00001-of-00003.gguf")
    assert len(outputs) == 3
    merged = _core.ModelFile.open(outputs[0])
    for tensor in merged.tensors:
        expected = tensors.get(tensor.name) or read_tensor(case.base, tensor)
        assert read_tensor(merged, tensor) == expected
    for source, output in zip(case.base.paths, outputs, strict=True):
        assert os.path.getsize(source) == os.path.getsize(output)


def test_merge_never_writes_over_an_input(case: Case) -> None:
    case.convert()
    before = case.base_path.read_bytes()
    symbolic, hard = case.folder / "symbolic.gguf", case.folder / "hard.gguf"
    symbolic.symlink_to(case.base_path)
    hard.hardlink_to(case.base_path)
    for output in (case.base_path, symbolic, hard, case.overlay):
        with pytest.raises(InputError, match="is the input"):
            merge(case.base_path, case.overlay, output)
    with pytest.raises(InputError, match="is the input"):
        convert_routers(case.tuned, case.base_path, case.base_path)
    with pytest.raises(InputError, match="is the input"):
        extract(case.base_path, symbolic)
    assert case.base_path.read_bytes() == before
    assert symbolic.is_symlink()


def test_interrupt_leaves_nothing_and_keeps_an_older_file(case: Case) -> None:
    case.convert()
    output = case.folder / "merged.gguf"
    output.write_bytes(b"older")

    def interrupt(done: int, total: int) -> None:
        assert leftovers(case.folder)  # the copy is under way
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(case.base_path, case.overlay, output, interrupt)
    assert output.read_bytes() == b"older"
    assert not leftovers(case.folder)


def test_full_disk_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.convert()
    output = case.folder / "merged.gguf"

    def full(*arguments: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(ReadError, match=r"merged\.gguf: No space left.*free some space"):
        merge(case.base_path, case.overlay, output)
    assert not output.exists()
    assert not leftovers(case.folder)


def test_too_little_space_is_told_before_the_work(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.convert()
    monkeypatch.setattr(
        atomic.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 9)
    )
    with pytest.raises(InputError, match="MiB free"):
        merge(case.base_path, case.overlay, case.folder / "merged.gguf")


def test_copies_where_the_kernel_cannot(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.convert()
    expected = case.folder / "expected.gguf"
    merge(case.base_path, case.overlay, expected)

    def elsewhere(*arguments: int) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", elsewhere)
    output = case.folder / "merged.gguf"
    merge(case.base_path, case.overlay, output)
    assert output.read_bytes() == expected.read_bytes()


def test_file_size_limit_leaves_nothing(case: Case) -> None:
    """A write that the system really refuses, in a process of its own."""
    case.convert()
    output = case.folder / "merged.gguf"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        n_bytes = os.path.getsize(case.base_path) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    arguments = ["convert", "merge", case.base_path, case.overlay, "-o", output]
    done = subprocess.run(
        [sys.executable, "-m", "remoe_edge.cli", *map(str, arguments)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot write")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not output.exists()
    assert not leftovers(case.folder)


# --- Hugging Face folders ------------------------------------------------------------------------


def checkpoint(case: Case, folder: Path, dtype: type = np.float32) -> Arrays:
    """Write a folder like a published checkpoint: two shards, one of them without routers."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a b c")
    random = np.random.default_rng(3)
    tensors: Arrays = {"model.embed_tokens.weight": random.standard_normal((8, 4)).astype(dtype)}
    for key, array in checkpoint_values(case.base, tuned_values(case.base, seed=2)).items():
        tensors[key] = array.astype(dtype)
    tensors["model.norm.weight"] = np.ones(4, dtype)
    write_safetensors(folder / "model-00001-of-00002.safetensors", tensors, {"format": "pt"})
    write_safetensors(
        folder / "model-00002-of-00002.safetensors", {"lm_head.weight": np.zeros((8, 4), dtype)}
    )
    return tensors


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_export_hf(case: Case, dtype: type) -> None:
    source, output = case.folder / "hf", case.folder / "out"
    tensors = checkpoint(case, source, dtype)
    export_hf(source, case.tuned, output)
    names = CheckpointNames.covering("qwen3moe", tensors)
    written = SafetensorsFile.open(output / "model-00001-of-00002.safetensors")
    assert list(written.entries) == list(tensors)
    assert written.metadata == {"format": "pt"}
    n_tuned = 0
    for key, array in tensors.items():
        name = names.to_gguf(key)
        expected = array if name is None else case.values[name].astype(dtype)
        n_tuned += name is not None
        assert written.entries[key].shape == array.shape
        assert np.array_equal(written.float32(key), expected.astype(np.float32))
    assert n_tuned == len(case.values)
    last = "model-00002-of-00002.safetensors"
    assert os.path.samefile(source / last, output / last)  # a hard link
    assert (output / "tokenizer" / "vocab.txt").read_text() == "a b c"
    assert not os.path.samefile(source / "config.json", output / "config.json")
    assert not leftovers(case.folder)


def test_export_hf_bad_input(case: Case) -> None:
    source, output = case.folder / "hf", case.folder / "out"
    checkpoint(case, source)
    with pytest.raises(InputError, match="exists"):
        export_hf(source, case.tuned, source)
    with pytest.raises(InputError, match="inside the input"):
        export_hf(source, case.tuned, source / "out")
    with pytest.raises(InputError, match="does not name the architecture"):
        export_hf(source, case.retune(case.values, architecture=""), output)
    names = list(case.values)
    with pytest.raises(InputError, match="lacks the routers of layers"):
        export_hf(source, case.retune({names[0]: case.values[names[0]]}), output)
    turned = {**case.values, names[0]: np.ascontiguousarray(case.values[names[0]].T)}
    case.retune(turned)
    with pytest.raises(InputError, match="transposed"):
        export_hf(source, case.tuned, output)
    (case.folder / "empty").mkdir()
    with pytest.raises(UnsupportedError, match="no safetensors"):
        export_hf(case.folder / "empty", case.retune(case.values), output)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_hf(source, case.tuned, output, interrupt)
    assert not output.exists()
    assert not leftovers(case.folder)


# --- the command line ----------------------------------------------------------------------------


def test_cli_runs_the_whole_way(case: Case) -> None:
    run = CliRunner().invoke
    folder = case.folder
    base, tuned, overlay = map(str, (case.base_path, case.tuned, case.overlay))
    merged, extracted = str(folder / "merged.gguf"), str(folder / "extracted.gguf")
    checkpoint(case, folder / "hf")
    for arguments, answer in [
        (["routers", tuned, "--base", base, "-o", overlay], overlay),
        (["merge", base, overlay, "-o", merged], merged),
        (["extract", merged, "--base", base, "-o", extracted], extracted),
        (["export-hf", str(folder / "hf"), tuned, "-o", str(folder / "out")], str(folder / "out")),
    ]:
        result = run(command, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert result.stdout == answer + "\n"
    assert load_overlay(extracted, case.base) == load_overlay(overlay, case.base)


def test_cli_killed_politely_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.convert()

    def kill(*arguments: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1

    monkeypatch.setattr(os, "copy_file_range", kill)
    before = signal.getsignal(signal.SIGTERM)
    output = case.folder / "merged.gguf"
    try:
        result = CliRunner().invoke(
            command, ["merge", str(case.base_path), str(case.overlay), "-o", str(output)]
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 128 + signal.SIGTERM
    assert not output.exists()
    assert not leftovers(case.folder)


def test_write_overlay_wants_every_router(case: Case) -> None:
    with pytest.raises(InputError, match="lacks the routers"):
        write_overlay(case.overlay, case.base, {}, "")
    assert not case.overlay.exists()


# --- in the engine -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2-v3", "gpt-oss"])
def test_engine_with_overlay_is_stock_with_the_merged_file(arch: str, tmp_path: Path) -> None:
    case = Case(tmp_path, arch)
    case.convert()
    merged = tmp_path / "merged.gguf"
    merge(case.base_path, case.overlay, merged)
    prompt = [5, 9, 2, 7, 11]

    def by_stock(path: Path) -> npt.NDArray[np.float32]:
        return stock.run(path, prompt, n_greedy=0, use_extra_bufts=False).logits[0]

    assert not np.array_equal(by_stock(case.base_path), by_stock(merged))
    with Engine(
        case.base_path, cache="50%", routers=case.overlay, n_ctx=1024, threads=2, repack=False
    ) as engine:
        assert np.array_equal(engine.evaluate(prompt), by_stock(merged))
