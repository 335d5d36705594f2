"""Misses by event and by token: by hand, against brute force, and as the replayers before counted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from remoe_edge import _core
from remoe_edge.profile.pack import pack
from remoe_edge.routing.replay import misses_by_event, misses_by_token
from remoe_edge.routing.simulate import simulate
from remoe_edge.routing.trace import Trace, from_routed
from test_simulate import synthetic


def trace_of(*events: list[int], layers: int = 1) -> Any:
    array = np.array(events)
    return array.reshape(-1, layers, array.shape[1]).transpose(1, 0, 2)


def digest(missed: Any) -> tuple[int, int]:
    """Give how many, and a sum that says where they lie."""
    counts = np.asarray(missed, np.int64)
    return int(counts.sum()), int((counts * np.arange(1, len(counts) + 1)).sum())


# Of synthetic(), 4 layers of 16 experts and 400 tokens, counted in Python before the core told the
# misses of an event; frozen: (policy, slots) -> digest of misses by token.
FROZEN_BY_TOKEN = {
    ("lru", 2): (3200, 641600),
    ("lru", 5): (3200, 641600),
    ("lru", 16): (948, 198297),
    ("lru", 33): (255, 48742),
    ("lru", 64): (63, 3324),
    ("belady", 2): (3200, 641600),
    ("belady", 5): (1898, 384091),
    ("belady", 16): (495, 101212),
    ("belady", 33): (150, 25309),
    ("belady", 64): (63, 3324),
}
# The same by event. The optimum is not among them: the loop in Python did not know the future.
FROZEN_BY_EVENT = {
    ("lru", 2): (3200, 2561600),
    ("lru", 7): (2606, 2085868),
    ("lru", 16): (948, 791736),
    ("lru", 40): (170, 112446),
    ("lfu", 2): (3200, 2561600),
    ("lfu", 7): (2672, 2245839),
    ("lfu", 16): (1936, 1708141),
    ("lfu", 40): (594, 572515),
    ("lfru", 2): (3200, 2561600),
    ("lfru", 7): (1994, 1631741),
    ("lfru", 16): (1007, 852490),
    ("lfru", 40): (188, 135856),
    ("arc", 2): (3200, 2561600),
    ("arc", 7): (2170, 1754334),
    ("arc", 16): (892, 749521),
    ("arc", 40): (169, 112242),
    ("least-stale", 2): (3200, 2561600),
    ("least-stale", 7): (2174, 1737403),
    ("least-stale", 16): (1137, 942282),
    ("least-stale", 40): (198, 145478),
    ("reuse-biased", 2): (3200, 2561600),
    ("reuse-biased", 7): (1869, 1532053),
    ("reuse-biased", 16): (922, 765642),
    ("reuse-biased", 40): (216, 161640),
}


@pytest.mark.parametrize(("policy", "n_slots"), FROZEN_BY_TOKEN)
def test_frozen_counts_by_token(policy: str, n_slots: int) -> None:
    missed = misses_by_token(synthetic().routed(), n_slots, policy)
    assert missed.shape == (400,)
    assert digest(missed) == FROZEN_BY_TOKEN[policy, n_slots]


@pytest.mark.parametrize(("policy", "n_slots"), FROZEN_BY_EVENT)
def test_frozen_counts_by_event(policy: str, n_slots: int) -> None:
    missed = misses_by_event(synthetic(), n_slots, policy)
    assert missed.shape == (1600,)
    assert digest(missed) == FROZEN_BY_EVENT[policy, n_slots]


@pytest.mark.parametrize("policy", _core.policy_names())
def test_events_add_up_to_the_simulators_total(policy: str) -> None:
    trace = synthetic(seed=9, n_tokens=120)
    for n_slots in (2, 9, 30):
        missed = misses_by_event(trace, n_slots, policy)
        (outcome,) = simulate(trace, [policy], [n_slots], warm_tokens=50)
        assert int(missed[50 * 4 :].sum()) == outcome.misses
        by_token = misses_by_token(trace.routed(), n_slots, policy)
        assert (by_token == missed.reshape(120, 4).sum(1)).all()


def with_probabilities() -> Trace:
    """Make a trace of 3 layers of 24 experts whose events carry what the router said."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((3, 24)).astype(np.float32)
    routed, probs = np.empty((3, 200, 3), np.int16), np.empty((200, 3, 24), np.uint8)
    for step in range(200):
        scores = 0.9 * scores + 0.44 * rng.standard_normal(scores.shape).astype(np.float32)
        routed[:, step] = np.argsort(-scores, axis=1)[:, :3]
        powers = np.exp(2 * scores)
        probs[step] = _core.to_prob8(powers / powers.sum(axis=1, keepdims=True))
    trace = from_routed(routed, 24)
    trace.data, trace.n_prob_tokens = probs.reshape(-1), np.ones(600, np.uint16)
    trace.probs_at = np.arange(0, probs.size, 24, dtype=np.int64)
    return trace


def test_frozen_counts_with_probabilities_and_a_profile() -> None:
    trace = with_probabilities()
    weights = np.full(len(_core.feature_names()), 0.01, np.float32)
    links = np.random.default_rng(1).integers(-9, 9, 3 * 5 * 24 * 24).astype(np.int8)
    held = np.full(15, 0.01, np.float32), links
    for profile, expected in (
        (None, (386, 113312)),
        (pack([1], weights), (317, 94180)),
        (pack([1], weights, held, n_layers=3, n_experts=24), (317, 94188)),
    ):
        assert digest(misses_by_event(trace, 20, "reuse-biased", profile)) == expected
        assert digest(misses_by_event(trace, 20, "lru", profile)) == (334, 98181)


@pytest.mark.parametrize("policy", _core.live_policy_names())
def test_a_wide_event_counts_its_waves_together(policy: str) -> None:
    """The log's replay and `Cache.run` cut alike."""
    rng = np.random.default_rng(2)
    wide = [rng.permutation(12)[: rng.integers(1, 12)] for _ in range(60)]
    sizes = [len(each) for each in wide]
    columns = {
        **synthetic(n_tokens=2).columns(), "layer": np.zeros(60, np.uint16), "step": np.arange(60),
        "phase": np.zeros(60, np.uint8), "n_tokens": np.full(60, 4, np.uint32),
        "offsets": np.concatenate([[0], np.cumsum(sizes)]),
        "experts": np.concatenate(wide).astype(np.uint16), "data": None,
    }  # fmt: skip
    missed = _core.replay_misses(columns, 1, 12, 5, policy)
    cache = _core.Cache(1, 12, 5, policy)
    by_hand = [
        cache.run(0, each.tolist(), step=step, decode=False, n_tokens=4)
        for step, each in enumerate(wide)
    ]
    assert missed.tolist() == by_hand
    assert sum(by_hand) == _core.simulate(columns, 1, 12, 5, policy)["misses"]
    assert max(by_hand) > 5


# --- by hand ---


def test_lru_by_hand() -> None:
    trace = trace_of([0, 1], [1, 2], [0, 3], [2, 1])
    # 3 slots: {0 1} miss 2; {1 2} miss 1; {0 3} 0 hits, 3 evicts 1; {2 1} 2 hits, 1 misses.
    assert misses_by_token(trace, 3, "lru").tolist() == [2, 1, 1, 1]


def test_events_are_atomic() -> None:
    # Expert by expert, 2 would push out 0 before its turn; as one event 0 is pinned.
    trace = trace_of([0, 1], [2, 0])
    assert misses_by_token(trace, 2, "lru").tolist() == [2, 1]


def test_layers_share_one_cache() -> None:
    # Expert 0 of layer 0 and expert 0 of layer 1 are two experts.
    trace = trace_of([0], [0], [0], [0], layers=2)
    assert misses_by_token(trace, 2, "lru").tolist() == [2, 0]
    assert misses_by_token(trace, 1, "lru").tolist() == [2, 2]


def fewest(events: list[list[int]], n_slots: int) -> int:
    """Try every choice of victims."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for event in events:
        following: dict[frozenset[int], int] = {}
        for held, cost in states.items():
            spare = sorted(held - set(event))
            keep = min(len(spare), n_slots - len(event))
            for kept in itertools.combinations(spare, keep):
                state = frozenset(event) | frozenset(kept)
                total = cost + len(set(event) - held)
                following[state] = min(following.get(state, 1 << 30), total)
        states = following
    return min(states.values())


def test_belady_is_the_optimum() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        events = [sorted(random.choice(5, 2, replace=False).tolist()) for _ in range(7)]
        assert misses_by_token(trace_of(*events), 3, "belady").sum() == fewest(events, 3)


def test_belady_never_misses_more_than_lru() -> None:
    random = np.random.default_rng(2)
    chosen = np.argsort(random.random((3, 200, 16)), axis=-1)[..., :4]
    for slots in (4, 12, 24, 48):
        lru, belady = (
            misses_by_token(chosen, slots, "lru"),
            misses_by_token(chosen, slots, "belady"),
        )
        assert belady.sum() <= lru.sum()
    # With a slot for everything, each expert misses once.
    assert misses_by_token(chosen, 48, "lru").sum() == sum(
        len(np.unique(layer)) for layer in chosen
    )
