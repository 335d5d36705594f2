"""The trace file: what is written comes back, and damage is named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remoe_edge import _core
from remoe_edge.errors import InputError, ModelError, RemoeError
from remoe_edge.routing.trace import from_routed, read_trace
from rewriting import rewrite

RNG = np.random.default_rng(7)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A trace of a prefill step of three tokens and two decode steps, two layers, probabilities."""
    path = tmp_path / "a.trace"
    writer = _core.TraceWriter(
        str(path), 2, 6, 2, "abc123", '{"model": "tiny", "expert_bytes": 64}'
    )
    for layer in range(2):
        writer.append(
            layer=layer, step=0, decode=False, experts=[4, 1, 0], n_tokens=3,
            ids=[[4, 1], [1, 0], [4, 0]], probs=np.full((3, 6), [[0.5], [0.25], [0.125]]),
        )  # fmt: skip
    for step in (1, 2):
        for layer in range(2):
            probs = None if layer else [1.0, 0.5, 0.1, 0.01, 1e-6, 0.0]
            writer.append(layer=layer, step=step, decode=True, experts=[step, 0], probs=probs)
    assert not path.exists()
    writer.finish()
    return path


def test_what_was_recorded_comes_back(recorded: Path) -> None:
    trace = read_trace(recorded)
    assert (trace.n_layers, trace.n_experts, trace.top_k) == (2, 6, 2)
    assert (trace.fingerprint, trace.meta["model"], trace.expert_bytes) == ("abc123", "tiny", 64)
    assert trace.n_events == 6
    assert trace.total_tokens == 5
    assert trace.step.tolist() == [0, 0, 1, 1, 2, 2]
    assert trace.phase.tolist() == [0, 0, 1, 1, 1, 1]
    assert trace.n_tokens.tolist() == [3, 3, 1, 1, 1, 1]
    assert trace.experts.tolist() == [4, 1, 0, 4, 1, 0, 1, 0, 1, 0, 2, 0, 2, 0]
    assert trace.token_ids(0).tolist() == [[4, 1], [1, 0], [4, 0]]
    assert trace.token_ids(5).tolist() == [[2, 0]]
    assert trace.routed().tolist() == [[[4, 1], [1, 0], [4, 0], [1, 0], [2, 0]]] * 2
    prefill = trace.probs(0)
    assert prefill is not None
    assert prefill.tolist() == [[0.5] * 6, [0.25] * 6, [0.125] * 6]
    decode = trace.probs(2)
    assert decode is not None
    np.testing.assert_allclose(decode[0], [1.0, 0.5, 0.1, 0.01, 0, 0], rtol=0.032)
    assert trace.probs(3) is None


def test_saved_again_it_is_the_same_file(recorded: Path, tmp_path: Path) -> None:
    read_trace(recorded).save(tmp_path / "b.trace")
    assert (tmp_path / "b.trace").read_bytes() == recorded.read_bytes()


def test_an_unfinished_recording_leaves_nothing(tmp_path: Path) -> None:
    writer = _core.TraceWriter(str(tmp_path / "c.trace"), 1, 4, 1)
    writer.append(layer=0, step=0, decode=True, experts=[3])
    assert [p.name for p in tmp_path.iterdir()] == ["c.trace.part"]
    del writer
    assert list(tmp_path.iterdir()) == []


def test_a_writer_refuses_nonsense(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        _core.TraceWriter(str(tmp_path / "d"), 1, 4, 5)
    with pytest.raises(RemoeError, match="cannot create"):
        _core.TraceWriter(str(tmp_path / "no" / "d"), 1, 4, 1)
    writer = _core.TraceWriter(str(tmp_path / "d"), 1, 4, 1)
    for wrong in ({"layer": 1}, {"step": -1}, {"n_tokens": 2}, {"probs": np.ones((2, 4))}):
        event = {"layer": 0, "step": 0, "decode": True, "experts": [0], **wrong}
        with pytest.raises(InputError):
            writer.append(**event)
    writer.append(layer=0, step=0, decode=True, experts=[0])
    writer.finish()
    with pytest.raises(InputError, match="finished"):
        writer.append(layer=0, step=1, decode=True, experts=[0])
    assert read_trace(tmp_path / "d").n_events == 1


def test_every_truncation_is_named(recorded: Path) -> None:
    whole = recorded.read_bytes()
    for size in range(len(whole)):
        rewrite(recorded, whole[:size])
        with pytest.raises(ModelError) as caught:
            read_trace(recorded)
        assert str(recorded) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, b"X", "is no trace"),
        (8, struct.pack("<I", 2), "version 2"),
        (12, struct.pack("<I", 2**32 - 4), "header"),
        (16, struct.pack("<I", 0), "impossible header"),
        (16, struct.pack("<I", 2**31), "impossible header"),
        (24, struct.pack("<I", 7), "impossible header"),
        (28, struct.pack("<I", 2**32 - 1), "header"),
        (32, struct.pack("<Q", 2**64 - 1), "was not finished"),
        (32, struct.pack("<Q", 5), "promises 5"),
    ],
)
def test_a_hostile_header_is_refused(recorded: Path, at: int, value: bytes, says: str) -> None:
    data = bytearray(recorded.read_bytes())
    data[at : at + len(value)] = value
    recorded.write_bytes(data)
    with pytest.raises(ModelError, match=says):
        read_trace(recorded)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (4, struct.pack("<H", 2), "impossible"),
        (6, b"\2", "does not begin like an event"),
        (7, b"\0", "does not begin like an event"),
        (7, b"\xa0", "several tokens and no ids"),
        (8, struct.pack("<I", 2**32 - 1), "impossible"),
        (8, struct.pack("<I", 2**23), "file ends"),
        (12, struct.pack("<H", 7), "impossible"),
        (14, struct.pack("<H", 4), "impossible"),
        (16, struct.pack("<H", 6), "names expert 6"),
        (16, struct.pack("<H", 1), "names expert 1 twice"),
        (22, struct.pack("<H", 5), "routes a token to expert 5"),
    ],
)
def test_a_hostile_event_is_named(recorded: Path, at: int, value: bytes, says: str) -> None:
    data = bytearray(recorded.read_bytes())
    first = struct.unpack_from("<I", data, 12)[0]
    data[first + at : first + at + len(value)] = value
    recorded.write_bytes(data)
    with pytest.raises(ModelError, match=rf"event 0 at byte {first} .*{says}"):
        read_trace(recorded)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_random_damage_is_an_error_or_a_valid_trace(
    recorded: Path, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(recorded.read_bytes())
    for at, value in flips:
        data[at % len(data)] = value
    damaged = recorded.with_suffix(".damaged")
    damaged.write_bytes(data)
    try:
        trace = read_trace(damaged)
    except RemoeError:
        return
    assert trace.experts.max(initial=0) < trace.n_experts
    for event in range(trace.n_events):
        trace.probs(event)


def test_probabilities_in_a_byte() -> None:
    p = np.geomspace(2**-15.4, 1, 5000).astype(np.float32)
    codes = _core.to_prob8(p)
    back = _core.from_prob8(codes)
    assert np.abs(back / p - 1).max() <= 2**-5
    assert (np.diff(codes.astype(int)) >= 0).all()
    every = np.arange(256, dtype=np.uint8)
    assert (_core.to_prob8(_core.from_prob8(every)) == every).all()
    odd = np.array([0.0, -1.0, np.nan, 1e-9, 1.0, 7.0, np.inf], np.float32)
    assert _core.to_prob8(odd).tolist() == [0, 0, 0, 0, 255, 255, 255]


def test_npz_is_imported(tmp_path: Path) -> None:
    routed = np.array(
        [RNG.permuted(np.tile(np.arange(6), (9, 1)), axis=1)[:, :2] for _ in range(3)]
    )
    np.savez(tmp_path / "e.npz", experts=routed, meta='{"num_experts": 6, "model": "m"}')
    trace = read_trace(tmp_path / "e.npz")
    assert (trace.n_layers, trace.n_experts, trace.top_k, trace.n_events) == (3, 6, 2, 27)
    assert (trace.routed() == routed).all()
    trace.save(tmp_path / "e.trace")
    assert (read_trace(tmp_path / "e.trace").routed() == routed).all()
    part = trace.tokens(2, 5)
    assert (part.routed() == routed[:, 2:5]).all()
    with pytest.raises(InputError, match="no steps"):
        trace.tokens(9, 12)


@pytest.mark.parametrize(
    ("routed", "says"),
    [
        (np.zeros((2, 2, 2), int), "twice"),
        (np.full((1, 1, 1), 4), "lie in 4..4"),
        (np.full((1, 1, 1), -1), "lie in -1..-1"),
        (np.zeros((2, 2), int), "integers"),
        (np.zeros((1, 1, 1)), "integers"),
        (np.zeros((0, 1, 1), int), "integers"),
    ],
)
def test_a_wrong_array_is_refused(routed: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_routed(routed, 4)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ModelError, match="is no trace"):
        read_trace(tmp_path / "empty")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(InputError, match="cannot read the trace .*zip"):
        read_trace(tmp_path / "zip")
    np.savez(tmp_path / "other.npz", tokens=np.arange(3))
    with pytest.raises(InputError, match="holds no array"):
        read_trace(tmp_path / "other.npz")
