"""Hand-worked sequences for every policy, and what must hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remoe_edge import _core
from remoe_edge.errors import BudgetError, InputError

LIVE = _core.live_policy_names()


def touch(cache: _core.Cache, layer: int, experts: list[int], step: int = 0) -> list[bool]:
    """Run one event and say which of its experts were hits."""
    placed = cache.begin(layer, experts, step=step)
    cache.end()
    return [hit for _, _, hit in placed]


def play(policy: str, slots: int, events: list[list[int]], n_experts: int = 8) -> list[list[int]]:
    """Run events of one layer and list the residents after each."""
    cache = _core.Cache(1, n_experts, slots, policy)
    states = []
    for step, experts in enumerate(events):
        touch(cache, 0, experts, step)
        states.append([expert for _, expert in cache.residents()])
    return states


def test_lru_evicts_the_longest_unused() -> None:
    assert play("lru", 3, [[0], [1], [2], [0], [3], [4]])[-2:] == [[0, 2, 3], [0, 3, 4]]


def test_lru_breaks_ties_inside_an_event_by_its_order() -> None:
    assert play("lru", 3, [[2, 0], [1], [3]])[-1] == [0, 1, 3]


def test_lfu_evicts_the_least_counted_and_remembers_the_evicted() -> None:
    # 0 twice, 1 once, 2 once: 1 is older than 2 and leaves. Back again it counts two and 2 leaves.
    states = play("lfu", 3, [[0], [0], [1], [2], [3], [1], [4]])
    assert states[4] == [0, 2, 3]
    assert states[5] == [0, 1, 3]  # 2 and 3 count one, 2 is older
    assert states[6] == [0, 1, 4]  # 3 counts one, 1 two


def test_lfru_lets_old_favourites_fade() -> None:
    # Five uses 60 events ago weigh less than two just now: 5 · 0.95^60 ≈ 0.23.
    events: list[list[int]] = [[0]] * 5 + [[]] * 60 + [[1], [2]] * 2 + [[3]]
    assert play("lfru", 3, events)[-1] == [1, 2, 3]
    assert play("lfu", 3, events)[-1] == [0, 2, 3]


def test_lfru_prefers_frequent_over_merely_recent() -> None:
    # lru would drop 0 for 3; its three fresh uses outweigh one more recent.
    events = [[0], [0], [0], [1], [2], [3]]
    assert play("lfru", 3, events)[-1] == [0, 2, 3]
    assert play("lru", 3, events)[-1] == [1, 2, 3]


def test_arc_protects_what_was_seen_twice_from_a_scan() -> None:
    events = [[0], [0], [1], [1], [2], [3], [4], [5], [6]]
    assert {0, 1} <= set(play("arc", 4, events)[-1])
    assert not {0, 1} & set(play("lru", 4, events)[-1])


def test_arc_adapts_to_a_remembered_miss() -> None:
    # Four slots, 0 and 1 seen twice (t2), 2 and 3 once (t1). Reading 4 evicts 2 from t1; asking
    # for 2 again raises t1's target to one, so that 3, the oldest of t1's two, leaves next.
    states = play("arc", 4, [[0], [0], [1], [1], [2], [3], [4], [2]])
    assert states[6] == [0, 1, 3, 4]
    assert states[7] == [0, 1, 2, 4]


def test_least_stale_takes_from_passed_layers_first() -> None:
    cache = _core.Cache(3, 4, 4, "least-stale")
    touch(cache, 0, [0], 0)
    touch(cache, 1, [0], 0)
    touch(cache, 2, [0], 0)
    touch(cache, 0, [1], 1)  # full now
    touch(cache, 1, [1], 1)
    # Stale: (0,0), (1,0) in layers already run and (2,0) still to come. (0,0) is the oldest passed.
    assert cache.residents() == [(0, 1), (1, 0), (1, 1), (2, 0)]
    touch(cache, 2, [1], 1)
    assert cache.residents() == [(0, 1), (1, 1), (2, 0), (2, 1)]  # (1,0) is older than (2,0)


def test_least_stale_hits_below_the_working_set() -> None:
    # Four layers of one expert each, three slots: LRU always evicts what comes next.
    fresh, lru = (_core.Cache(4, 2, 3, name) for name in ("least-stale", "lru"))
    for step in range(10):
        for layer in range(4):
            touch(fresh, layer, [0], step)
            touch(lru, layer, [0], step)
    assert lru.counts()["hits"] == 0
    assert fresh.counts()["hits"] == 2 * 9  # layers 0 and 1 stay; 2 and 3 share the third slot


@pytest.mark.parametrize("policy", LIVE)
def test_an_event_never_evicts_its_own(policy: str) -> None:
    cache = _core.Cache(2, 8, 4, policy)
    rng = np.random.default_rng(1)
    for step in range(200):
        for layer in range(2):
            experts = rng.choice(8, 4, replace=False).tolist()
            placed = cache.begin(layer, experts, step=step)
            assert [expert for expert, _, _ in placed] == experts
            assert sorted(slot for _, slot, _ in placed) == [0, 1, 2, 3]
            assert set(cache.residents()) == {(layer, expert) for expert in experts}
            cache.end()


@pytest.mark.parametrize("policy", LIVE)
def test_all_experts_fit(policy: str) -> None:
    cache = _core.Cache(2, 4, 8, policy)
    for step in range(3):
        for layer in range(2):
            hits = touch(cache, layer, [3, 1, 0, 2], step)
            assert hits == [step > 0] * 4
    assert cache.counts() == {"events": 6, "hits": 16, "misses": 8, "evictions": 0}


@pytest.mark.parametrize("policy", LIVE)
def test_too_many_for_the_slots_changes_nothing(policy: str) -> None:
    cache = _core.Cache(1, 8, 2, policy)
    touch(cache, 0, [0, 1])
    with pytest.raises(BudgetError, match="3 experts of layer 0"):
        cache.begin(0, [2, 3, 4])
    assert cache.residents() == [(0, 0), (0, 1)]
    assert touch(cache, 0, [1, 2]) == [True, False]


@pytest.mark.parametrize("policy", LIVE)
def test_a_failed_read_gives_the_slot_back(policy: str) -> None:
    cache = _core.Cache(1, 8, 3, policy)
    touch(cache, 0, [0, 1, 2])
    placed = cache.begin(0, [3, 0, 4], step=1)
    slot = next(slot for expert, slot, _ in placed if expert == 3)
    cache.failed(3)
    cache.end()
    assert (0, 3) not in cache.residents()
    assert cache.resident == 2
    # The freed slot is the next one taken, nobody has to leave, and the policy is not confused.
    evictions = cache.counts()["evictions"]
    (placed_again,) = cache.begin(0, [3], step=2)
    cache.end()
    assert placed_again == (3, slot, False)
    assert cache.counts()["evictions"] == evictions
    for step in range(3, 40):
        touch(cache, 0, [step % 8, (step * 3 + 1) % 8], step) if step % 8 != (
            step * 3 + 1
        ) % 8 else touch(cache, 0, [step % 8], step)
        assert cache.resident == 3


@pytest.mark.parametrize("policy", LIVE)
def test_every_read_of_an_event_fails(policy: str) -> None:
    cache = _core.Cache(1, 8, 4, policy)
    touch(cache, 0, [0, 1, 2, 3])
    cache.begin(0, [4, 5, 6, 7], step=1)
    for expert in (4, 5, 6, 7):
        cache.failed(expert)
    cache.end()
    assert cache.resident == 0
    assert touch(cache, 0, [4, 5], 2) == [False, False]


@pytest.mark.parametrize("policy", LIVE)
def test_clear_empties_and_goes_on(policy: str) -> None:
    cache = _core.Cache(2, 4, 3, policy)
    for step in range(5):
        touch(cache, step % 2, [step % 4, (step + 1) % 4], step)
    cache.clear()
    assert cache.residents() == []
    assert touch(cache, 0, [0, 1, 2], 9) == [False] * 3
    assert touch(cache, 0, [0, 1, 2], 10) == [True] * 3


def test_misuse_is_refused() -> None:
    cache = _core.Cache(1, 4, 2, "lru")
    with pytest.raises(InputError, match="unknown policy 'mru'; known: lru, lfu"):
        _core.Cache(1, 4, 2, "mru")
    with pytest.raises(InputError):
        cache.end()
    with pytest.raises(InputError):
        cache.begin(1, [0])
    with pytest.raises(InputError):
        cache.begin(0, [4])
    cache.begin(0, [0])
    with pytest.raises(InputError, match="still open"):
        cache.begin(0, [1])
    with pytest.raises(InputError, match="no such miss"):
        cache.failed(1)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    policy=st.sampled_from(LIVE),
    n_layers=st.integers(1, 3),
    n_experts=st.integers(2, 9),
)
def test_bookkeeping_holds_under_any_sequence(
    data: st.DataObject, policy: str, n_layers: int, n_experts: int
) -> None:
    n_slots = data.draw(st.integers(1, n_layers * n_experts))
    cache = _core.Cache(n_layers, n_experts, n_slots, policy)
    resident: dict[tuple[int, int], int] = {}
    hits = misses = 0
    for step in range(data.draw(st.integers(1, 30))):
        layer = data.draw(st.integers(0, n_layers - 1))
        experts = data.draw(st.lists(st.integers(0, n_experts - 1), max_size=n_slots, unique=True))
        for expert, slot, hit in cache.begin(layer, experts, step=step):
            assert hit == ((layer, expert) in resident)
            assert not hit or resident[layer, expert] == slot
            hits, misses = hits + hit, misses + (not hit)
            resident[layer, expert] = slot
            if not hit and data.draw(st.integers(0, 9)) == 0:
                cache.failed(expert)
        cache.end()
        now = cache.residents()
        resident = {key: slot for key, slot in resident.items() if key in set(now)}
        assert set(resident) == set(now)
        assert len(set(resident.values())) == len(now) == cache.resident <= n_slots
    counts = cache.counts()
    assert (counts["hits"], counts["misses"]) == (hits, misses)
