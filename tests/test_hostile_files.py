"""Profiles, traces and past prompts that anybody may have written: refused in a line, or sound.

Thousands of mutations with fixed seeds; csrc/cache/profile_test.cc does the same to profiles under
AddressSanitizer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny_moe
from remoe_edge import _core
from remoe_edge.cli import cli
from remoe_edge.errors import InputError, ModelError, RemoeError
from remoe_edge.files.npz import read_npz
from remoe_edge.predict import PromptStore
from remoe_edge.profile import read_profile
from remoe_edge.profile.kept_profile import KeptProfile
from remoe_edge.routing.simulate import simulate
from remoe_edge.routing.trace import from_routed, read_trace
from rewriting import rewrite
from test_profile import resealed

NONE = np.zeros(0, np.float32)
NO_LINKS = np.zeros(0, np.int8)


@contextlib.contextmanager
def little_memory(n_bytes: int = 256 << 20) -> Any:
    """Let this process grow by so much and no more, so that what a header claims cannot be had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert str(error)


# --- profiles ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "m.gguf"
    return tiny_moe.make(path, "olmoe", "Q8_0", n_expert=16, n_expert_used=4)  # 3 layers


def whole_profile(uses: np.ndarray | None = None) -> bytes:
    n = len(_core.feature_names())
    weights = np.linspace(-1, 1, n).astype(np.float32)
    links = np.arange(3 * 5 * 16 * 16).astype(np.int8)
    return bytes(
        _core.make_profile(
            3, 16, "", '{"model": "m"}', np.ones(1, np.float32), weights,
            np.full(15, 0.01, np.float32), links, np.ones(48, np.float32) if uses is None else uses,
        )
    )  # fmt: skip


def test_mutated_profiles_are_refused_or_kept(model: Path, tmp_path: Path) -> None:
    """Through the file's reader and the engine's keeper, which hands out hot experts by number."""
    whole, path = whole_profile(), tmp_path / "p.profile"
    rng = np.random.default_rng(20)
    refused = kept = 0
    for _ in range(1500):
        kind = rng.integers(3)
        if kind == 0:
            at = int(rng.integers(8, 136 + 64))
            data = resealed(whole, at, bytes(rng.integers(0, 256, rng.integers(1, 5), np.uint8)))
        elif kind == 1:
            field = int(rng.choice([12, 16, 20, 24, 28, 32, 36, 120]))
            value = int(rng.choice([0, 1, 2, 3, 5, 15, 16, 48, 128, 2**31, 2**32 - 1]))
            data = resealed(whole, field, struct.pack("<I", value))
        else:
            data = whole[: rng.integers(0, len(whole))]
            if len(data) >= 128:
                data = resealed(data, 104, struct.pack("<Q", len(data)))
        rewrite(path, data)
        try:
            held = KeptProfile(path, model)
        except RemoeError as error:
            one_line(error)
            refused += str(path) in str(error)
            continue
        hot = held.hot()
        assert len(np.unique(hot)) == len(hot)
        assert ((hot >= 0) & (hot < 48)).all()
        kept += 1
    assert refused > 300
    assert kept > 100


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, -1.0])
def test_uses_that_are_none_never_come_into_a_kept_profile(
    model: Path, tmp_path: Path, wrong: float
) -> None:
    path = tmp_path / "kept.profile"
    KeptProfile(path, model).save(np.ones(48), 10, 3, 16)
    before = path.read_bytes()
    uses = np.ones(48)
    uses[20] = wrong
    with pytest.raises(ModelError, match="uses of expert 4 of layer 1 are"):
        KeptProfile(path, model).save(uses, 10, 3, 16)
    assert path.read_bytes() == before
    with pytest.raises(ModelError, match="uses of expert 4 of layer 1 are"):
        whole_profile(uses.astype(np.float32))


def test_a_profile_of_another_shape_is_refused_whatever_the_policy(
    model: Path, tmp_path: Path
) -> None:
    """Without a fingerprint the shape alone tells; hot experts would lie beyond the model."""
    path = tmp_path / "p.profile"
    uses = np.ones(4 * 64, np.float32)
    path.write_bytes(_core.make_profile(4, 64, "", "{}", NONE, NONE, NONE, NO_LINKS, uses))
    with pytest.raises(ModelError, match="4 layers of 64 experts, and m.gguf has 3 of 16"):
        KeptProfile(path, model)


@pytest.mark.parametrize(
    "meta", ["[]", "{", "[" * 100_000, "\\xff", '{"a": ' * 50_000], ids=[*"abcde"]
)
def test_what_a_profile_says_of_itself_is_an_object(tmp_path: Path, meta: str) -> None:
    path = tmp_path / "p.profile"
    uses = np.ones(4, np.float32)
    data = _core.make_profile(2, 2, "", meta, NONE, NONE, NONE, NO_LINKS, uses)
    path.write_bytes(data)
    with pytest.raises(ModelError, match="cannot be read") as caught:
        read_profile(path)
    one_line(caught.value)


def test_a_fingerprint_is_plain_text() -> None:
    data = resealed(whole_profile(), 40, b"\xff\xfe\x1b[31m")
    with pytest.raises(ModelError, match="fingerprint"):
        _core.parse_profile(data, "p")
    with pytest.raises(ModelError, match="fingerprint"):
        _core.make_profile(0, 0, "f" * 65, "{}", NONE, NONE, NONE, NO_LINKS)


@pytest.mark.parametrize("read", [read_profile, read_trace, PromptStore.load])
def test_pipes_devices_and_folders_are_no_files(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="no regular file"):
            read(path)


# --- traces ---


def claiming(n_layers: int, n_experts: int) -> bytes:
    """Make a trace of one event whose header claims a large model."""
    header = bytearray(128)
    header[:8] = b"REMOETRC"
    struct.pack_into("<7I", header, 8, 1, 132, n_layers, n_experts, 1, 2, 1)
    struct.pack_into("<Q", header, 32, 1)
    return bytes(header) + b"{}\0\0" + struct.pack("<IHBBIHHHH", 0, 0, 1, 0xA0, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("policy", ["lru", "reuse-biased", "belady"])
def test_a_header_that_claims_much_takes_little(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(claiming(4096, 16384))
    trace = read_trace(path)
    with little_memory(), pytest.raises(InputError, match="no such cache"):
        simulate(trace, [policy], [8])
    path.write_bytes(claiming(4097, 4))
    with pytest.raises(ModelError, match="impossible header"):
        read_trace(path)


def test_a_top_k_beyond_the_layer_is_refused() -> None:
    """A token of more experts than there are was copied over the end of a table."""
    columns = from_routed(np.arange(4).reshape(1, 4, 1) % 2, 2).columns()
    ids = np.zeros(64, np.uint16).view(np.uint8)
    wide = {
        **columns, "data": ids, "top_k": 8, "ids_at": np.zeros(4, np.int64),
        "n_tokens": np.full(4, 4, np.uint32), "n_prob_tokens": np.zeros(4, np.uint16),
    }  # fmt: skip
    for run in (
        lambda: _core.simulate(wide, 1, 2, 2, "reuse-biased"),
        lambda: _core.policy_scores(wide, 1, 2, None),
        lambda: _core.Cache(1, 2, 2, "reuse-biased").begin(
            0, [0], n_tokens=2, ids=np.zeros((2, 8), np.uint16)
        ),
    ):
        with pytest.raises(InputError, match=r"top-8|more than a layer"):
            run()


@pytest.mark.parametrize("n_tokens", [0, 2**24 + 1, 2**32 - 1])
def test_tokens_beyond_any_step_are_refused(n_tokens: int) -> None:
    columns = from_routed(np.arange(4).reshape(1, 4, 1) % 2, 2).columns()
    wrong = {**columns, "n_tokens": np.full(4, n_tokens, np.uint32)}
    with pytest.raises(InputError, match="tokens"):
        _core.replay_misses(wrong, 1, 2, 2, "reuse-biased")


def test_events_to_sample_are_those_there_are() -> None:
    columns = from_routed(np.arange(4).reshape(1, 4, 1) % 2, 2).columns()
    for events in ([4], [-1], [2, 1], [1, 1]):
        with pytest.raises(InputError, match="rising numbers of events"):
            _core.policy_columns(columns, 1, 2, None, np.asarray(events))


def test_an_event_names_an_expert_once() -> None:
    cache = _core.Cache(1, 4, 4, "lru")
    for attempt in (cache.begin, cache.run):
        with pytest.raises(InputError, match="twice"):
            attempt(0, [1, 1])
    assert cache.resident == 0


@pytest.mark.parametrize(
    "meta",
    [b"[" * 100_000, b"\xff\xff", b"3", b'{"num_experts": true}', b'{"num_experts": 1e999}',
     b'{"num_experts": 70000}', b'{"num_experts": -3}', b'{"num_experts": "8"}'],
    ids=[*"abcdefgh"],
)  # fmt: skip
def test_a_meta_that_makes_no_sense_is_named(tmp_path: Path, meta: bytes) -> None:
    path = tmp_path / "t.npz"
    text = meta.decode("latin-1")
    with path.open("wb") as file:
        np.savez(file, experts=np.zeros((1, 3, 1), np.int64), meta=text)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    one_line(caught.value)
    assert str(path) in str(caught.value)


# --- .npz ---


def npz(header: bytes, payload: bytes, compress: bool = True) -> bytes:
    """Make an archive of one array `experts` whose header says anything."""
    held = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(held, "w", kind) as archive:
        padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
        magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded))
        archive.writestr("experts.npy", magic + padded + payload)
    return held.getvalue()


@pytest.mark.parametrize(
    ("shape", "payload"),
    [
        ("(1000000000000,)", b""),
        ("(1000000, 1000000, 1000000)", b"x" * 100),
        ("(-1, 4)", b"x" * 32),
        ("(3, 4, 1)", b"x" * 95),
        ("(3, 4, 1)", b"x" * 97),
        ("(300000000,)", b"\0" * 1000),
        ("4", b""),
    ],
)
def test_an_array_is_as_large_as_what_is_there(tmp_path: Path, shape: str, payload: bytes) -> None:
    path = tmp_path / "t.npz"
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    path.write_bytes(npz(header, payload))
    with little_memory(), pytest.raises(InputError, match="cannot read the trace") as caught:
        read_trace(path)
    one_line(caught.value)


def test_a_bomb_is_not_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    shape = "(100, 1000, 2000)"
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    path.write_bytes(npz(header, bytes(1_600_000_000)[:400_000_000]))
    assert path.stat().st_size < 1_000_000
    with little_memory(), pytest.raises(InputError, match="far more than its file"):
        read_trace(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1), }"
    path.write_bytes(npz(header, b"cos\nsystem\n(S'true'\ntR."))
    with pytest.raises(InputError, match="no array of numbers"):
        read_trace(path)


def test_arrays_in_any_order_are_read(tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4)
    with (tmp_path / "a.npz").open("wb") as file:
        np.savez_compressed(file, c=values, f=np.asfortranarray(values), n=np.zeros((0, 5)))
    held = read_npz(tmp_path / "a.npz", "test", ["c", "f"], ["n", "none"])
    assert (held["c"] == values).all()
    assert (held["f"] == values).all()
    assert held["n"].shape == (0, 5)
    with pytest.raises(InputError, match="holds no array `x`"):
        read_npz(tmp_path / "a.npz", "test", ["x"])


# --- past prompts ---


def stored(path: Path, **changed: Any) -> None:
    held = {
        "version": 2, "fingerprint": "", "limit": 5, "summaries": np.ones((2, 8), np.float16),
        "activations": np.full((2, 3, 4), 0.25, np.float16), **changed,
    }  # fmt: skip
    with path.open("wb") as file:
        np.savez_compressed(file, **held)


def bad(value: float, shape: tuple[int, ...]) -> np.ndarray:
    array = np.full(shape, 0.25)
    array[1, 0] = value
    return array


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"summaries": bad(np.nan, (2, 8))}, "summary of prompt 1"),
        ({"summaries": bad(1e9, (2, 8))}, "summary of prompt 1"),
        ({"summaries": np.ones((2, 8), np.int64)}, "fit together"),
        ({"activations": bad(np.nan, (2, 3, 4))}, "prompt 1, layer 0"),
        ({"activations": bad(np.inf, (2, 3, 4))}, "prompt 1, layer 0"),
        ({"activations": bad(0.5, (2, 3, 4))}, "prompt 1, layer 0"),
        ({"activations": np.zeros((2, 0, 4))}, "fit together"),
        ({"activations": np.zeros((3, 3, 4))}, "fit together"),
        ({"limit": 1}, "fit together"),
        ({"limit": 2**62}, "fit together"),
        ({"limit": np.nan}, "`limit`"),
        ({"limit": [5, 5]}, "`limit`"),
        ({"version": "2"}, "`version`"),
        ({"version": 3}, "version 3"),
        ({"fingerprint": 7}, "`fingerprint`"),
    ],
)
def test_a_store_that_makes_no_sense_is_named(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    path = tmp_path / "s.npz"
    stored(path)
    assert len(PromptStore.load(path)) == 2
    stored(path, **changed)
    with pytest.raises(InputError, match=says) as caught:
        PromptStore.load(path)
    one_line(caught.value)


def test_a_store_takes_no_prompt_that_it_could_not_read_again(tmp_path: Path) -> None:
    store = PromptStore(1, 2)
    even = np.full((1, 2), 0.5, np.float32)
    for summary, shares in (
        (np.array([np.nan, 1], np.float32), even),
        (np.array([1e6, 1], np.float32), even),  # beyond half precision
        (np.ones(2, np.float32), even * np.nan),
        (np.ones(2, np.float32), even * 3),
    ):
        with pytest.raises(InputError, match="cannot be kept"):
            store.add(summary, shares)
    assert len(store) == 0
    store.add(np.ones(2, np.float32), even)
    store.save(tmp_path / "s.npz")
    assert len(PromptStore.load(tmp_path / "s.npz")) == 1


@pytest.mark.parametrize("kind", ["store", "trace"])
def test_mutated_archives_are_refused_or_sound(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    if kind == "store":
        stored(path)
    else:
        routed = np.argsort(np.random.default_rng(1).random((2, 40, 8)), axis=2)[..., :2]
        np.savez(path, experts=routed, meta=json.dumps({"num_experts": 8}))
    whole = path.read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(700):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.integers(4) == 0:
            data = data[: rng.integers(len(data))]
        rewrite(path, data)
        try:
            if kind == "store":
                store = PromptStore.load(path)
                assert all(np.isfinite(each).all() for each in store.activations)
            else:
                trace = read_trace(path)
                assert trace.experts.max() < trace.n_experts
        except RemoeError as error:
            one_line(error)
            refused += 1
    assert refused > 300


def test_the_command_says_it_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(claiming(4096, 16384))
    run = CliRunner().invoke(cli, ["simulate", str(tmp_path / "t"), "--cache", "8"])
    assert run.exit_code == 1
    assert len(run.stderr.strip().splitlines()) == 1
    assert "no such cache" in run.stderr
