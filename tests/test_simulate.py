"""The simulator runs the live policies: frozen counts, the oracle as a bound, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from remoe_edge import _core
from remoe_edge.cli import cli
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.files.models import shipped_model
from remoe_edge.routing.simulate import parse_cache, parse_policies, simulate
from remoe_edge.routing.trace import Trace, from_routed, read_trace

LIVE = _core.live_policy_names()


def synthetic(seed: int = 3, n_tokens: int = 400, n_layers: int = 4, n_experts: int = 16) -> Trace:
    """Make a seeded trace with topics: each token keeps most of a slowly changing preference."""
    rng = np.random.default_rng(seed)
    routed = np.empty((n_layers, n_tokens, 2), np.int64)
    taste = rng.normal(size=(n_layers, n_experts))
    for token in range(n_tokens):
        if token % 50 == 0:
            taste = rng.normal(size=(n_layers, n_experts))
        scores = 1.5 * taste + rng.normal(size=(n_layers, n_experts))
        routed[:, token] = np.argsort(-scores, axis=1)[:, :2]
    return from_routed(routed, n_experts)


# Misses on synthetic() with 16 of 64 experts resident, frozen: a change means a changed policy.
FROZEN = {
    "lru": 948,
    "lfu": 1936,
    "lfru": 1007,
    "arc": 892,
    "least-stale": 1137,
    "reuse-biased": 922,
    "belady": 495,
}


def test_frozen_counts() -> None:
    got = {o.policy: o.misses for o in simulate(synthetic(), list(FROZEN), [16])}
    assert got == FROZEN


@pytest.mark.parametrize("policy", LIVE)
def test_the_replay_is_the_live_cache(policy: str) -> None:
    trace = synthetic(seed=5, n_tokens=150)
    cache = _core.Cache(trace.n_layers, trace.n_experts, 20, policy)
    for event in range(trace.n_events):
        cache.begin(
            int(trace.layer[event]),
            trace.experts[trace.offsets[event] : trace.offsets[event + 1]].tolist(),
            step=int(trace.step[event]),
        )
        cache.end()
    (outcome,) = simulate(trace, [policy], [20])
    live = cache.counts()
    assert (outcome.events, outcome.hits, outcome.misses, outcome.evictions) == tuple(
        live[key] for key in ("events", "hits", "misses", "evictions")
    )


def test_the_replay_is_the_live_cache_with_probabilities(tmp_path: Path) -> None:
    """What a trace stores in a byte must not change any decision."""
    rng = np.random.default_rng(8)
    n_experts, path = 12, str(tmp_path / "p.trace")
    cache = _core.Cache(2, n_experts, 8, "reuse-biased")
    writer = _core.TraceWriter(path, 2, n_experts, 3)
    for step in range(200):
        for layer in range(2):
            probs = rng.dirichlet(np.full(n_experts, 0.4)).astype(np.float32)
            experts = np.argsort(-probs)[:3].astype(np.uint16)
            writer.append(layer=layer, step=step, decode=True, experts=experts, probs=probs)
            cache.begin(layer, experts.tolist(), step=step, probs=probs)
            cache.end()
    writer.finish()
    trace = read_trace(path)
    assert trace.has_probs()
    (outcome,) = simulate(trace, ["reuse-biased"], [8])
    assert outcome.misses == cache.counts()["misses"]
    assert 0 < outcome.misses < 2 * 200 * 3


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_policy_beats_the_oracle(data: st.DataObject) -> None:
    n_layers, n_experts = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 8))
    n_tokens = data.draw(st.integers(1, 25))
    top_k = data.draw(st.integers(1, min(3, n_experts)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(n_experts, 0.5), size=n_layers) + 1e-6
    noise = -np.log(rng.random((n_layers, n_tokens, n_experts))) / weights[:, None]
    routed = np.argsort(noise, axis=2)[..., :top_k]
    n_slots = data.draw(st.integers(top_k, n_layers * n_experts))
    outcomes = simulate(from_routed(routed, n_experts), _core.policy_names(), [n_slots])
    best = next(o for o in outcomes if o.policy == "belady")
    for outcome in outcomes:
        assert outcome.misses >= best.misses
        assert outcome.hits + outcome.misses == n_layers * n_tokens * top_k


def brute_force(routed: np.ndarray, n_experts: int, n_slots: int) -> int:
    """Find the fewest misses by trying every choice of victims."""
    n_layers, n_tokens, _ = routed.shape
    states = {frozenset[tuple[int, int]](): 0}
    for token in range(n_tokens):
        for layer in range(n_layers):
            need = frozenset((layer, int(e)) for e in routed[layer, token])
            following: dict[frozenset[tuple[int, int]], int] = {}
            for held, cost in states.items():
                cost += len(need - held)
                options = {held | need}
                while any(len(option) > n_slots for option in options):
                    options = {option - {out} for option in options for out in option - need}
                for option in options:
                    following[option] = min(cost, following.get(option, cost))
            states = following
    return min(states.values())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_slots=st.integers(2, 5))
def test_the_oracle_is_the_optimum(seed: int, n_slots: int) -> None:
    rng = np.random.default_rng(seed)
    routed = np.argsort(rng.random((2, 5, 4)), axis=2)[..., :2]
    (outcome,) = simulate(from_routed(routed, 4), ["belady"], [n_slots])
    assert outcome.misses == brute_force(routed, 4, n_slots)


def test_slots_equal_to_top_k_and_to_everything() -> None:
    trace = synthetic(n_tokens=60)
    for outcome in simulate(trace, _core.policy_names(), [2, 64]):
        if outcome.slots == 64:
            touched = len(np.unique(trace.layer.repeat(2) * 16 + trace.experts))
            assert outcome.misses == touched
            assert outcome.evictions == 0
        else:
            assert outcome.misses == 4 * 60 * 2  # every layer clears the one before


def test_warm_steps_are_not_counted() -> None:
    trace = synthetic(n_tokens=100)
    (cold,) = simulate(trace, ["lru"], [16])
    (warm,) = simulate(trace, ["lru"], [16], warm_tokens=40)
    (head,) = simulate(trace.tokens(0, 40), ["lru"], [16])
    assert warm.tokens == 60
    assert warm.misses == cold.misses - head.misses
    with pytest.raises(InputError, match="100 steps"):
        simulate(trace, ["lru"], [16], warm_tokens=100)


def test_a_cache_below_one_token_is_refused() -> None:
    with pytest.raises(BudgetError, match="2 experts"):
        simulate(synthetic(n_tokens=5), ["lru"], [1])


def test_a_step_wider_than_the_cache_comes_in_waves() -> None:
    """Residents first, then the others, so that no wave pushes out what a later one finds."""
    columns = synthetic(n_tokens=2).columns()
    wide = {
        **columns,
        "layer": np.zeros(2, np.uint16), "step": np.arange(2), "phase": np.zeros(2, np.uint8),
        "n_tokens": np.full(2, 4, np.uint32), "offsets": np.array([0, 5, 10]),
        "experts": np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], np.uint16), "data": None,
    }  # fmt: skip
    for policy in _core.policy_names():
        # The first step leaves the experts of its last waves; the second finds exactly those.
        counts = _core.simulate(wide, 1, 8, 3, policy, 0, None)
        assert counts["hits"] == 3
        assert counts["misses"] == 7
        assert counts["events"] == 4


def test_columns_that_contradict_each_other_are_refused() -> None:
    columns = synthetic(n_tokens=5).columns()
    for key, value in {
        "layer": columns["layer"] + 4,
        "experts": columns["experts"] + 9,
        "offsets": columns["offsets"][:-1],
        "phase": columns["phase"] + 1,
    }.items():
        with pytest.raises(InputError):
            _core.simulate({**columns, key: value}, 4, 16, 8, "lru", 0, None)
    with pytest.raises(InputError, match="twice"):
        _core.simulate({**columns, "experts": columns["experts"] * 0}, 4, 16, 8, "lru", 0, None)
    nowhere = np.full(20, -1)
    held = {"data": np.zeros(31, np.uint8), "ids_at": nowhere, "probs_at": nowhere}
    held["n_prob_tokens"] = np.ones(20, np.uint16)
    _core.simulate({**columns, **held}, 4, 16, 8, "lru", 0, None)
    for wrong in (
        {"probs_at": np.full(20, 16)}, {"ids_at": np.full(20, 28)}, {"ids_at": np.full(20, 3)},
        {"probs_at": np.zeros(20, int), "n_prob_tokens": np.zeros(20, np.uint16)},
    ):  # fmt: skip
        with pytest.raises(InputError, match="beyond"):
            _core.simulate({**columns, **held, **wrong}, 4, 16, 8, "lru", 0, None)
    far = {"data": np.full(32, 200, np.uint8), "ids_at": np.zeros(20, int)}
    with pytest.raises(InputError, match="names expert"):
        _core.simulate({**columns, **held, **far}, 4, 16, 8, "lru", 0, None)


def test_sizes_and_names_are_parsed() -> None:
    assert parse_cache("25%", 6144) == 1536
    assert parse_cache("1500", 6144) == 1500
    for wrong in ("", "x", "0", "-1", "0%", "101%", "1e3", "nan%"):
        with pytest.raises(InputError, match="--cache"):
            parse_cache(wrong, 100)
    assert parse_policies("all") == _core.policy_names()
    assert parse_policies("arc, lru") == ["arc", "lru"]
    for wrong in ("mru", ""):
        with pytest.raises(InputError):
            parse_policies(wrong)


def test_the_command_prints_table_json_and_picture(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, experts=synthetic(n_tokens=80).routed(), meta='{"num_experts": 16}')
    run = CliRunner().invoke(cli, ["simulate", str(path), "--cache", "25%,32"])
    assert run.exit_code == 0, run.output
    for name in _core.policy_names():
        assert run.stdout.count(f" {name} ") >= 2
    assert "25.0% · 16 slots" in run.stdout
    assert "50.0% · 32 slots" in run.stdout
    arguments = ["simulate", str(path), "--policy", "lru,belady", "--cache", "16", "--json"]
    run = CliRunner().invoke(cli, [*arguments, "--expert-bytes", "1000"])
    lru, belady = json.loads(run.stdout)["outcomes"]
    assert lru["gap_share"] == 0
    assert belady["gap_share"] == 1
    assert lru["bytes_per_token"] == 1000 * lru["misses"] / 80
    pytest.importorskip("matplotlib")
    run = CliRunner().invoke(cli, ["simulate", str(path), "--plot", str(tmp_path / "t.png")])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("command", ["simulate", "price"])
def test_a_picture_that_cannot_be_drawn_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Before anything is measured for it: that may take hours."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = tmp_path / "text"
    text.write_text("words")
    arguments = {
        "simulate": [str(text)],
        "price": [str(shipped_model()), "--text", str(text)],
    }[command]
    run = CliRunner().invoke(cli, [command, *arguments, "--plot", str(tmp_path / "t.png")])
    assert run.exit_code == 1
    assert run.stderr == "Error: pictures need matplotlib: pip install 'remoe-edge[plot]'\n"
    assert not run.stdout


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"nothing")
    for arguments, says in (
        ([str(tmp_path / "none")], "No such file"),
        ([str(tmp_path / "bad")], "is no trace"),
    ):
        run = CliRunner().invoke(cli, ["simulate", *arguments])
        assert run.exit_code == 1
        assert says in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1
