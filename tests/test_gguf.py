"""ModelFile against files that gguf-py writes, whole and damaged, and what llama.cpp is shown."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remoe_edge.errors import InputError, ModelError, ReadError, RemoeError, UnsupportedError
from remoe_edge.native import _core
from rewriting import rewrite
from tiny_moe import ARCHS, MERGED_ARCHS, QUANTS, make

ModelFile = _core.ModelFile


def header_bytes(model: _core.ModelFile) -> int:
    return min(tensor.offset for tensor in model.tensors)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A MoE file of a few KiB, most of them header."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_expert_used_count(2)
    writer.add_token_list(["<s>", "a", "", "bc"])
    writer.add_array("qwen3moe.numbers", [1, 2, 3])
    random = np.random.default_rng(0)
    for name, shape in [
        ("token_embd.weight", (4, 8)),
        ("blk.0.ffn_gate_inp.weight", (3, 8)),
        ("blk.0.ffn_gate_exps.weight", (3, 4, 8)),
        ("blk.0.ffn_up_exps.weight", (3, 4, 8)),
        ("blk.0.ffn_down_exps.weight", (3, 8, 4)),
        ("output_norm.weight", (5,)),
    ]:
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def open_bytes(folder: Path, raw: bytes) -> _core.ModelFile:
    return ModelFile.open(rewrite(folder / "m.gguf", raw))


def test_type_names_are_those_of_gguf_py() -> None:
    for kind in gguf.GGMLQuantizationType:
        traits = _core.type_traits(kind)
        assert traits is not None
        assert traits[0] == kind.name


def test_type_sizes_are_those_of_llama_cpp() -> None:
    import ctypes

    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    known = 0
    for number in range(43):  # GGML_TYPE_COUNT of the pinned build
        weights, n_bytes = ggml.ggml_blck_size(number), ggml.ggml_type_size(number)
        traits = _core.type_traits(number)
        assert (traits[1:] if traits else (0, 0)) == (weights, n_bytes), number
        known += traits is not None
    assert known == 35
    assert _core.type_traits(43) is None


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_reads_like_gguf_py_reads_it(arch: str, tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", arch, "Q4_0")
    model, reader = ModelFile.open(path), gguf.GGUFReader(path)
    assert model.architecture == reader.fields["general.architecture"].contents()
    assert model.key_names == sorted(key for key in reader.fields if not key.startswith("GGUF."))
    assert [tensor.name for tensor in model.tensors] == [tensor.name for tensor in reader.tensors]
    for ours, theirs in zip(model.tensors, reader.tensors, strict=True):
        assert ours.type == theirs.tensor_type
        assert ours.shape == list(theirs.shape)
        assert (ours.offset, ours.n_bytes) == (theirs.data_offset, theirs.n_bytes)
    assert model.file_bytes == [path.stat().st_size]
    layers = model.expert_layers
    assert layers
    # Arctic has a norm of that ending, which is dense.
    experts = [t for t in model.tensors if t.name.endswith("_exps.weight") and len(t.shape) == 3]
    assert model.expert_bytes == sum(tensor.n_bytes for tensor in experts)
    assert model.expert_bytes == sum(layer.n_experts * layer.expert_bytes for layer in layers)
    assert model.dense_bytes == sum(t.n_bytes for t in model.tensors) - model.expert_bytes
    assert 0 < model.n_experts_used <= min(layer.n_experts for layer in layers)


@pytest.mark.parametrize("quant", QUANTS)
def test_experts_lie_where_they_are_said_to_lie(quant: str, tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", "qwen3moe", quant)
    model, raw = ModelFile.open(path), path.read_bytes()
    data = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for layer in model.expert_layers:
        assert [matrix.matrix for matrix in layer.matrices] == ["up", "gate", "down"]
        for matrix in layer.matrices:
            array = data[model.tensors[matrix.tensor].name]
            assert len(array) == layer.n_experts
            for expert in range(layer.n_experts):
                begin = matrix.offset + expert * matrix.expert_bytes
                assert raw[begin : begin + matrix.expert_bytes] == array[expert].tobytes()


@pytest.mark.parametrize("arch", MERGED_ARCHS)
def test_merged_gate_up(arch: str, tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", arch, "Q4_0", merged_gate_up=True)
    for layer in ModelFile.open(path).expert_layers:
        assert [matrix.matrix for matrix in layer.matrices] == ["gate_up", "down"]


def test_text_that_is_no_utf8_hides_nothing(small: bytes, tmp_path: Path) -> None:
    raw = small.replace(struct.pack("<Q", 2) + b"bc", struct.pack("<Q", 2) + b"b\xe9")
    raw = raw.replace(b"qwen3moe", b"qwen3mo\xe9", 1)
    model = open_bytes(tmp_path, raw)
    assert model.strings("tokenizer.ggml.tokens") == ["<s>", "a", "", "b�"]
    assert model.string("general.architecture") == model.architecture


def test_key_accessors(small: bytes, tmp_path: Path) -> None:
    model = open_bytes(tmp_path, small)
    assert model.unsigned("qwen3moe.expert_used_count") == 2
    assert model.unsigned_array("qwen3moe.numbers") == [1, 2, 3]
    assert model.string("general.architecture") == "qwen3moe"
    for absent in ("nothing", "tokenizer.ggml.tokens"):
        assert model.unsigned(absent) is None
        assert model.unsigned_array(absent) is None
        assert model.string(absent) is None
        assert model.integers(absent) is None
        assert model.number(absent) is None
    assert model.strings("tokenizer.ggml.tokens") == ["<s>", "a", "", "bc"]
    assert model.integers("qwen3moe.numbers") == [1, 2, 3]
    assert model.number("qwen3moe.expert_used_count") == 2
    assert model.strings("nothing") is None
    assert model.strings("qwen3moe.numbers") is None
    assert model.find("nothing") is None
    tensor = model.find("output_norm.weight")
    assert tensor is not None
    assert (tensor.shape, tensor.type_name) == ([5], "F32")


@pytest.mark.parametrize("n_split", [1, 3])
def test_llama_cpp_is_shown_one_whole_file(n_split: int, tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", "qwen3moe", "Q4_0", n_split=n_split)
    model = ModelFile.open(path)
    assert len(model.paths) == n_split
    router = "blk.1.ffn_gate_inp.weight"
    real = model.find(router)
    assert real is not None
    overlay = bytes(range(256)) * (real.n_bytes // 256)
    virtual = _core.VirtualFile(model, {router: overlay})
    shown = tmp_path / "shown.gguf"
    shown.write_bytes(virtual.pread(0, virtual.size))
    # Parsed by someone else, it is a valid file with the same tensors, and no word about shards.
    reader = gguf.GGUFReader(shown)
    assert not [key for key in reader.fields if key.startswith("split.")]
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in model.tensors]
    for theirs, ours in zip(reader.tensors, model.tensors, strict=True):
        data = theirs.data.tobytes()
        if ours.name == router:
            assert data == overlay
        elif ours.name.endswith("_exps.weight"):
            assert data == bytes(ours.n_bytes)
        else:
            with open(model.paths[ours.shard], "rb") as file:
                file.seek(ours.offset)
                assert data == file.read(ours.n_bytes)
    assert virtual.dense_bytes_read == model.dense_bytes - len(overlay)
    assert virtual.expert_bytes_skipped == model.expert_bytes


def test_overlay_that_does_not_fit(small: bytes, tmp_path: Path) -> None:
    model = open_bytes(tmp_path, small)
    for overlay in ({"nothing": b""}, {"blk.0.ffn_gate_inp.weight": b"short"}):
        with pytest.raises(InputError, match=next(iter(overlay))):
            _core.VirtualFile(model, overlay)


# --- damage --------------------------------------------------------------------------------------


def test_every_truncation_is_refused(small: bytes, tmp_path: Path) -> None:
    model = open_bytes(tmp_path, small)
    last = model.tensors[-1]
    end = last.offset + last.n_bytes
    for size in range(0, end, 7):
        with pytest.raises(ModelError, match=r"m\.gguf"):
            open_bytes(tmp_path, small[:size])
    assert open_bytes(tmp_path, small[:end]).tensors  # the padding after the last is no loss


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.gguf: No such file"):
        ModelFile.open(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            ModelFile.open(path)
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_bytes(tmp_path, b"")
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_bytes(tmp_path, b'{"model_type": "qwen3_moe"}')


def test_paths_and_values_that_are_no_unicode(small: bytes, tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
    strange.write_bytes(small)
    assert ModelFile.open(strange).paths == [str(strange)]
    strange.write_bytes(small[:100])
    with pytest.raises(ModelError, match="gguf"):
        ModelFile.open(strange)
    model = open_bytes(tmp_path, small.replace(b"qwen3moe", b"qwen3\xff\xfe\xfd", 1))
    assert model.architecture  # whatever it is, it is a str


def test_versions_and_byte_order(small: bytes, tmp_path: Path) -> None:
    def with_version(version: int, order: str = "<") -> bytes:
        return small[:4] + struct.pack(order + "I", version) + small[8:]

    assert open_bytes(tmp_path, with_version(2)).version == 2
    for version in (0, 1, 4):
        with pytest.raises(UnsupportedError, match=f"version {version}"):
            open_bytes(tmp_path, with_version(version))
    with pytest.raises(UnsupportedError, match="big-endian"):
        open_bytes(tmp_path, with_version(3, ">"))


def test_unaligned_offsets_overlaps_and_unknown_types(small: bytes, tmp_path: Path) -> None:
    name = b"blk.0.ffn_up_exps.weight"
    at = small.index(name) + len(name) + 4 + 3 * 8  # past the dimensions
    for offset, value, words in [
        (0, struct.pack("<I", 4), "unknown type 4"),
        (0, struct.pack("<I", 2**31), "unknown type"),
        (0, struct.pack("<I", 12), "no multiple of the 256"),
        (4, struct.pack("<Q", 8), "no multiple of the alignment"),
        (4, struct.pack("<Q", 0), "overlap"),  # with the embedding
        (4, struct.pack("<Q", 2**63), "beyond the file"),
        (-8, struct.pack("<Q", 0), "dimension 2 is zero"),
        (-8, struct.pack("<Q", 2**62), "overflow"),
        (-28, struct.pack("<I", 5), "5 dimensions"),
    ]:
        raw = bytearray(small)
        raw[at + offset : at + offset + len(value)] = value
        with pytest.raises(ModelError, match=words) as caught:
            open_bytes(tmp_path, bytes(raw))
        assert "blk.0.ffn_up_exps.weight" in str(caught.value)
    # Expert ranges of two matrices over one another.
    gate = open_bytes(tmp_path, small).find("blk.0.ffn_gate_exps.weight")
    assert gate is not None
    raw = bytearray(small)
    relative = gate.offset - header_bytes(open_bytes(tmp_path, small)) + 32
    raw[at + 4 : at + 12] = struct.pack("<Q", relative)
    with pytest.raises(ModelError, match="overlap"):
        open_bytes(tmp_path, bytes(raw))


def test_duplicate_names(small: bytes, tmp_path: Path) -> None:
    # Names of one length, so that nothing else changes.
    raw = small.replace(b"blk.0.ffn_gate_exps", b"blk.0.ffn_down_exps", 1)
    with pytest.raises(ModelError, match=r"'blk\.0\.ffn_down_exps\.weight' occurs twice"):
        open_bytes(tmp_path, raw)


def test_missing_and_foreign_shards(tmp_path: Path) -> None:
    first = make(tmp_path / "m.gguf", "qwen3moe", "Q4_0", n_split=3)
    second, third = sorted(tmp_path.glob("m-*.gguf"))[1:]
    with pytest.raises(InputError, match=r"give the first, .*m-00001-of-00003"):
        ModelFile.open(second)
    kept = third.read_bytes()
    third.unlink()
    with pytest.raises(ReadError, match=r"m-00003-of-00003\.gguf"):
        ModelFile.open(first)
    third.write_bytes(second.read_bytes())
    with pytest.raises(ModelError):
        ModelFile.open(first)
    third.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ModelError, match="shard 3 of 3"):
        ModelFile.open(first)
    third.write_bytes(kept)
    ModelFile.open(first)
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match="must end in -00001-of-00003"):
        ModelFile.open(renamed)


def test_layers_that_cannot_be_streamed_are_named(small: bytes, tmp_path: Path) -> None:
    lacking = open_bytes(tmp_path, small.replace(b"blk.0.ffn_down_exps", b"blk.1.ffn_down_exps", 1))
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_up_exps"):
        _ = lacking.expert_layers


NASTY = [0, 1, 2, 31, 255, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 32, 2**64 - 1]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(small) - 1))
        match data.draw(st.sampled_from(["byte", "word", "cut", "swap"])):
            case "byte":
                raw[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "word":
                raw[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(NASTY)))
            case "cut":
                del raw[at:]
            case "swap":
                other = data.draw(st.integers(0, len(small) - 1))
                raw[at : at + 16], raw[other : other + 16] = (
                    raw[other : other + 16],
                    raw[at : at + 16],
                )
    folder = tmp_path_factory.getbasetemp()
    try:
        model = open_bytes(folder, bytes(raw))
    except RemoeError:
        return
    for tensor in model.tensors:
        assert tensor.offset >= 24  # behind a header's magic, version and counts
        assert tensor.offset % model.alignment == 0
        assert tensor.offset + tensor.n_bytes <= model.file_bytes[tensor.shard]
    for key in model.key_names:
        model.unsigned(key), model.string(key), model.unsigned_array(key)
    try:
        layers = model.expert_layers
    except UnsupportedError:
        return
    for layer in layers:
        for matrix in layer.matrices:
            end = matrix.offset + layer.n_experts * matrix.expert_bytes
            assert end <= model.file_bytes[matrix.shard]


def test_hostile_sizes_allocate_nothing(small: bytes, tmp_path: Path) -> None:
    """Files that claim terabytes, and holes that seem to back the claim, under a memory limit."""
    paths = []
    for place in (8, 16, small.index(b"general.architecture") + 20 + 4):
        for value in (2**20, 2**32, 2**40, 2**63 - 1):
            raw = bytearray(small)
            raw[place : place + 8] = struct.pack("<Q", value)
            path = tmp_path / f"{place}-{value}.gguf"
            path.write_bytes(raw)
            os.truncate(path, 2**42)
            paths.append(path)
    script = (
        "import resource, sys\n"
        "from remoe_edge.native import _core\n"
        "from remoe_edge.errors import ModelError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "limit = used + (64 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        _core.ModelFile.open(path)\n"
        "    except ModelError:\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.count("refused") == len(paths)
