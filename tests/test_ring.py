"""The ring: conversations that use the same experts become neighbours, and everybody keeps their turn."""

from __future__ import annotations

from collections import Counter

import numpy as np

from remoe_edge.engine.ring import AGAIN, Ring

# Conversations 0, 2, 4 use experts 0 to 3, and 1, 3, 5 the others; 6 uses all.
USES = {
    i: np.array([9, 9, 9, 9, 0, 0, 0, 0] if i % 2 == 0 else [0, 0, 0, 0, 9, 9, 9, 9])
    for i in range(6)
}
USES[6] = np.ones(8, np.int64)


def rounds(ring: Ring, waiting: list[int], n: int) -> list[int]:
    """Give whose slices follow each other."""
    order = []
    for _ in range(n * len(waiting)):
        one = ring.choose(waiting)
        ring.begin(one, waiting)
        ring.used(one, USES[one].astype(np.uint32))
        order.append(one)
    return order


def changes(order: list[int]) -> int:
    """Count neighbours in a ring that use other experts."""
    return sum(a % 2 != b % 2 for a, b in zip(order, [*order[1:], order[0]], strict=True))


def test_neighbours_use_the_same_experts() -> None:
    ring = Ring()
    talks = list(range(6))
    rounds(ring, talks, 2)
    assert sorted(ring.order) == talks
    assert changes(list(ring.order)) == 2
    last = rounds(ring, talks, 1)
    assert sorted(last) == talks
    assert changes(last) == 2
    for each in (6, *talks):
        ring.used(each, np.zeros(8, np.uint32))  # one that is not there; uses of nothing
    assert sorted(rounds(ring, talks, 1)) == talks


def test_everybody_has_a_turn_whatever_happens() -> None:
    """Conversations come, go and turn to something else; nobody is passed over for long."""
    chance = np.random.default_rng(1)
    ring, waiting = Ring(), [0]
    since: Counter[int] = Counter()
    for _ in range(3000):
        if chance.random() < 0.05:
            one = int(chance.integers(7))
            if one not in waiting:
                waiting.append(one)
                since[one] = 0
            elif len(waiting) > 1:
                waiting.remove(one)
                if chance.random() < 0.5:
                    ring.forget(one)
        one = ring.choose(waiting)
        assert one in waiting
        ring.begin(one, waiting)
        ring.used(one, chance.integers(0, 9, 8).astype(np.uint32))
        assert sorted(ring.order) == sorted(waiting)
        for each in waiting:
            since[each] = 0 if each == one else since[each] + 1
        # A ring of seven, in which each may be put elsewhere once in so many slices.
        assert max(since[each] for each in waiting) <= 3 * 7
    assert AGAIN > 1


def test_nothing_known_keeps_the_order_of_numbers() -> None:
    ring = Ring()
    order = []
    for _ in range(6):
        order.append(ring.choose([2, 0, 1]))
        ring.begin(order[-1], [2, 0, 1])
    assert order == [0, 1, 2, 0, 1, 2]
    ring.begin(0, [2, 0, 1])  # out of turn: the ring goes on from there
    assert ring.choose([2, 0, 1]) == 1
    assert ring.choose([2]) == 2
