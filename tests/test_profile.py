"""Profiles: fitted ones beat LRU on text that they were not fitted to; damaged ones are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from remoe_edge import _core
from remoe_edge.cli import cli
from remoe_edge.errors import InputError, ModelError
from remoe_edge.profile import fit_profile, read_profile, save_profile
from remoe_edge.profile.search import search
from remoe_edge.routing.simulate import simulate
from remoe_edge.routing.trace import Trace, from_routed, read_trace

N_LAYERS, N_EXPERTS, TOP_K = 3, 16, 2
NAMES = _core.feature_names()


def chained(seed: int, n_tokens: int) -> np.ndarray:
    """Route by a fixed chain: what follows from an expert is the same in every text."""
    chain = np.random.default_rng(0).normal(size=(N_LAYERS, N_EXPERTS, N_EXPERTS)) * 1.5
    rng = np.random.default_rng(seed)
    routed = np.empty((N_LAYERS, n_tokens, TOP_K), np.int64)
    last = np.tile(np.arange(TOP_K), (N_LAYERS, 1))
    for token in range(n_tokens):
        pull = np.take_along_axis(chain, last[:, :, None], axis=1).sum(axis=1)
        last = np.argsort(-(pull + rng.gumbel(size=pull.shape)), axis=1)[:, :TOP_K]
        routed[:, token] = last
    return routed


@pytest.fixture(scope="module")
def fitted() -> bytes:
    traces = [from_routed(chained(seed, 700), N_EXPERTS, path=f"t{seed}") for seed in (1, 2)]
    return fit_profile(traces).data


def misses(trace: Trace, profile: bytes | None, policy: str = "reuse-biased") -> int:
    return simulate(trace, [policy], [12], profile=profile)[0].misses


def test_links_carry_over_to_other_text(fitted: bytes) -> None:
    held_out = from_routed(chained(9, 600), N_EXPERTS)
    lru, best = (misses(held_out, None, policy) for policy in ("lru", "belady"))
    assert misses(held_out, fitted) < lru - 0.15 * (lru - best)


def test_the_defaults_learn_while_they_run() -> None:
    held_out = from_routed(chained(9, 1500), N_EXPERTS)
    assert misses(held_out, None) < misses(held_out, None, "lru")


def test_fitting_again_gives_the_same_bytes() -> None:
    traces = [from_routed(chained(3, 450), N_EXPERTS)]
    assert fit_profile(traces, epochs=1).data == fit_profile(traces, epochs=1).data


def test_the_search_climbs_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = np.array([1.0, 0.0, -2.0, 0.5])
    start = np.array([0.8, 0.0, -1.5, 0.9])

    def value(at: np.ndarray) -> float:
        return -float(((at - peak) ** 2).sum())

    found = []
    for processors in ({0}, {0, 1, 2}):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, those=processors: those)
        found.append(search(start, value, np.random.default_rng(0)))
    assert (found[0] == found[1]).all()
    assert value(found[0]) > 0.5 * value(start)
    assert found[0][1] == 0  # what has no weight gets none
    nothing = np.zeros(3)
    assert (search(nothing, value, np.random.default_rng(0)) == nothing).all()


def test_a_search_that_only_fits_its_own_windows_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces = [from_routed(chained(seed, 450), N_EXPERTS) for seed in (1, 2)]

    def astray(start: np.ndarray, *_: object) -> np.ndarray:
        return -start

    monkeypatch.setattr("remoe_edge.profile.weights.search", astray)
    dropped = fit_profile(traces, links=False)
    monkeypatch.setattr("remoe_edge.profile.weights.search", lambda start, *_: start)
    plain = fit_profile(traces, links=False)
    assert not any(dropped.searched.values())
    assert dropped.gap_shares == plain.gap_shares
    weights = [_core.parse_profile(each.data, "m")["weights"] for each in (dropped, plain)]
    assert (weights[0] == weights[1]).all()


def test_probabilities_are_used_where_a_trace_has_them(tmp_path: Path) -> None:
    """The router leans towards its next choice a step ahead: near misses come next."""
    rng = np.random.default_rng(4)
    paths = []
    for name in ("a", "b", "held-out"):
        routed = rng.permuted(np.tile(np.arange(8), (600, 1)), axis=1)[:, :1].astype(np.uint16)
        writer = _core.TraceWriter(str(tmp_path / name), 1, 8, 1)
        for token in range(600):
            probs = np.full(8, 0.01, np.float32)
            probs[routed[token]] = 0.6
            if token + 1 < 600:
                probs[routed[token + 1]] = max(0.3, probs[routed[token + 1]][0])
            writer.append(layer=0, step=token, decode=True, experts=routed[token], probs=probs)
        writer.finish()
        paths.append(tmp_path / name)
    fitted = fit_profile([read_trace(path) for path in paths[:2]]).data
    held_out = read_trace(paths[2])
    (lru, ours, best) = simulate(held_out, ["lru", "reuse-biased", "belady"], [3], profile=fitted)
    # Three slots, and the router names what matters most: much of the gap is there to take.
    assert ours.misses < lru.misses - 0.3 * (lru.misses - best.misses)


def test_what_is_saved_is_read(tmp_path: Path, fitted: bytes) -> None:
    path = tmp_path / "m.profile"
    save_profile(fitted, path)
    save_profile(fitted, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.profile"]
    assert read_profile(path) == fitted
    parsed = _core.parse_profile(fitted, "m")
    assert (parsed["n_layers"], parsed["n_experts"]) == (N_LAYERS, N_EXPERTS)
    assert len(parsed["weights"]) == len(parsed["shares"]) * len(NAMES)
    assert np.abs(parsed["links"]).max() == 127
    assert json.loads(parsed["meta"])["tokens"] == 1400
    with pytest.raises(InputError, match="cannot write"):
        save_profile(fitted, tmp_path / "no" / "m.profile")
    with pytest.raises(InputError, match="cannot read"):
        read_profile(tmp_path / "none")


def test_damage_is_refused(fitted: bytes) -> None:
    rng = np.random.default_rng(0)
    for size in [0, 7, 127, 128, len(fitted) // 2, len(fitted) - 1]:
        with pytest.raises(ModelError):
            _core.parse_profile(fitted[:size], "m")
    with pytest.raises(ModelError, match="should have"):
        _core.parse_profile(fitted + b"\0", "m")
    for at in rng.integers(0, len(fitted), 200):
        damaged = bytearray(fitted)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ModelError):
            _core.parse_profile(bytes(damaged), "m")


def resealed(data: bytes, at: int, value: bytes) -> bytes:
    """Change bytes of a profile and give it the checksum of a whole one."""
    changed = bytearray(data)
    changed[at : at + len(value)] = value
    changed[112:120] = bytes(8)
    code = 0xCBF29CE484222325
    for byte in changed:
        code = (code ^ byte) * 0x100000001B3 % 2**64
    changed[112:120] = struct.pack("<Q", code)
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (12, struct.pack("<I", 2**32 - 8)),
        (16, struct.pack("<I", 2**32 - 1)),
        (20, struct.pack("<I", 16385)),
        (24, struct.pack("<I", 0)),
        (28, struct.pack("<I", 2**31)),
        (32, struct.pack("<I", 65)),
        (36, struct.pack("<I", 2**32 - 1)),
    ],
)
def test_a_hostile_profile_is_refused(fitted: bytes, at: int, value: bytes) -> None:
    assert _core.parse_profile(resealed(fitted, 120, b"\0"), "m")
    with pytest.raises(ModelError, match="contradicts"):
        _core.parse_profile(resealed(fitted, at, value), "m")


def test_numbers_that_are_none_are_refused(fitted: bytes) -> None:
    first_share = struct.unpack_from("<I", fitted, 12)[0]
    for at, value, says in (
        (first_share, -1.0, "cache sizes must rise between 0 and 1, and one is -1"),
        (first_share + 4, np.nan, "cache sizes .* one is nan"),
        (first_share + 12, np.inf, "weight used for a cache of 0.1 is inf"),
        (first_share + 16, np.nan, "weight use-0.5 for a cache of 0.1 is -?nan"),
    ):
        with pytest.raises(ModelError, match=says):
            _core.parse_profile(resealed(fitted, at, struct.pack("<f", value)), "m")


def test_a_profile_of_another_model_is_refused(fitted: bytes) -> None:
    with pytest.raises(InputError, match="3 layers of 16 experts and this one has 2 of 16"):
        _core.Cache(2, 16, 8, "reuse-biased", fitted)
    other = from_routed(chained(1, 300)[:2], N_EXPERTS)
    with pytest.raises(InputError, match="different models"):
        fit_profile([from_routed(chained(1, 300), N_EXPERTS), other])
    with pytest.raises(InputError, match="200 is the least"):
        fit_profile([from_routed(chained(1, 399), N_EXPERTS)])
    with pytest.raises(InputError, match="no trace"):
        fit_profile([])


def test_weights_alone_fit_any_model() -> None:
    weights = np.zeros(len(NAMES), np.float32)
    weights[NAMES.index("log-idle")] = -1
    nothing = np.zeros(0, np.float32), np.zeros(0, np.int8)
    data = _core.make_profile(0, 0, "", "{}", np.ones(1, np.float32), weights, *nothing)
    trace = from_routed(chained(5, 300), N_EXPERTS)
    # Idle time alone is LRU within a layer; it must run, and never evict the event's own.
    assert misses(trace, data) >= misses(trace, None, "belady")


def test_weights_follow_the_size_of_the_cache() -> None:
    """Between two fitted sizes weights are mixed, beyond them they stay."""
    low, high = (np.zeros(len(NAMES), np.float32) for _ in range(2))
    low[NAMES.index("log-idle")] = -1  # the small cache keeps the recent
    high[NAMES.index("log-idle")] = 1  # the large one, absurdly, the idle
    nothing = np.zeros(0, np.float32), np.zeros(0, np.int8)
    shares = np.array([0.25, 0.75], np.float32)
    data = _core.make_profile(0, 0, "", "{}", shares, np.stack([low, high]), *nothing)
    single = [
        _core.make_profile(0, 0, "", "{}", shares[:1], weights, *nothing) for weights in (low, high)
    ]
    trace = from_routed(chained(6, 200), N_EXPERTS)
    for slots, alone in ((10, single[0]), (12, single[0]), (36, single[1]), (40, single[1])):
        got, want = (
            simulate(trace, ["reuse-biased"], [slots], profile=p)[0].misses for p in (data, alone)
        )
        assert got == want


def test_the_command(tmp_path: Path) -> None:
    for seed in (1, 2):
        np.savez(tmp_path / f"{seed}.npz", experts=chained(seed, 320), meta='{"num_experts": 16}')
    target = tmp_path / "m.profile"
    arguments = ["profile", str(tmp_path / "1.npz"), str(tmp_path / "2.npz"), "-o", str(target)]
    run = CliRunner().invoke(cli, [*arguments, "--epochs", "1"])
    assert run.exit_code == 0, run.output
    assert run.stdout.count("LRU→Belady gap") == 6
    run = CliRunner().invoke(
        cli, ["simulate", str(tmp_path / "1.npz"), "--profile", str(target), "--json"]
    )
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(cli, [*arguments, "--no-links", "--json"])
    assert len(json.loads(run.stdout)["judged"]) == 6
    target.write_bytes(b"REMOEPRF" + bytes(200))
    run = CliRunner().invoke(cli, ["simulate", str(tmp_path / "1.npz"), "--profile", str(target)])
    assert run.exit_code == 1
    assert str(target) in run.stderr


@pytest.mark.parametrize("links", [[], ["--no-links"]])
@pytest.mark.parametrize("n_experts", [N_EXPERTS, N_EXPERTS + 1])
def test_fitting_anew_keeps_what_engines_counted(
    tmp_path: Path, links: list[str], n_experts: int
) -> None:
    np.savez(tmp_path / "1.npz", experts=chained(1, 420), meta='{"num_experts": 16}')
    nothing = np.zeros(0, np.float32)
    counted = np.arange(N_LAYERS * n_experts, dtype=np.float32)
    target = tmp_path / "m.profile"
    target.write_bytes(
        _core.make_profile(
            N_LAYERS, n_experts, "of a model", "{}", nothing, nothing, nothing, np.zeros(0, np.int8),
            counted,
        )
    )  # fmt: skip
    run = CliRunner().invoke(
        cli, ["profile", str(tmp_path / "1.npz"), "-o", str(target), "--epochs", "1", *links]
    )
    assert run.exit_code == 0, run.output
    parts = _core.parse_profile(read_profile(target), "it")
    assert len(parts["weights"]) > 0
    assert (len(parts["links"]) == 0) == bool(links)
    same = n_experts == N_EXPERTS
    assert (parts["fingerprint"] == "of a model") == same
    assert ("in past runs" in run.output) == same
    if same:
        np.testing.assert_array_equal(parts["uses"], counted)
    else:
        assert len(parts["uses"]) == 0
