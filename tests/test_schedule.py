"""Whose step is next: decisions alone, with costs and a clock that the test makes up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from remoe_edge.engine.schedule import LONGEST_SLICE, Schedule, Turn, group_sizes
from remoe_edge.engine.step_costs import StepCosts


@dataclass
class Talk:
    """A conversation that is always ready; n_pieces: of its prompt."""

    id: int
    n_pieces: int = 0
    since_s: float = 0.0
    begun: bool = True

    @property
    def prompts(self) -> bool:
        return self.n_pieces > 0


class World:
    """Run a schedule in made-up time. cost: (seconds, of them waiting) of a step by its turn and by how
    many steps these members have had in a row."""

    def __init__(
        self, schedule: Schedule, cost: Callable[[Turn, int], tuple[float, float]]
    ) -> None:
        self.schedule, self.cost = schedule, cost
        self.now_s = 0.0
        self.turns: list[Turn] = []
        self.tokens = 0
        self.longest_pause_s = 0.0

    def run(self, talks: list[Talk], steps: int) -> list[Turn]:
        turns = []
        for _ in range(steps):
            turn = self.schedule.next(talks, self.now_s)
            assert turn is not None
            in_row = 0
            for before in reversed(self.turns):
                if before.ids != turn.ids:
                    break
                in_row += 1
            took_s, waited_s = self.cost(turn, in_row)
            self.now_s += took_s
            for each in talks:
                if each.id in turn.ids:
                    self.longest_pause_s = max(self.longest_pause_s, self.now_s - each.since_s)
                    each.since_s = self.now_s
                    each.n_pieces -= turn.prompt
                    each.begun = True
            self.tokens += 0 if turn.prompt else len(turn.ids)
            self.schedule.measured(turn, took_s, waited_s)
            self.turns.append(turn)
            turns.append(turn)
        return turns


def resident(turn: Turn, in_row: int) -> tuple[float, float]:
    """Everything is in memory: more together cost little more."""
    return (0.5 if turn.prompt else 0.05 + 0.01 * len(turn.ids)), 0.0


def storage(turn: Turn, in_row: int) -> tuple[float, float]:
    """Each conversation reads its experts, the more in the first steps after another's."""
    if turn.prompt:
        return 1.0, 0.8
    each = 0.4 if in_row < 2 and len(turn.ids) == 1 else 0.1 if len(turn.ids) == 1 else 0.25
    return 0.02 + each * len(turn.ids), each * len(turn.ids)


def late(world: World, n: int = 200) -> list[Turn]:
    return world.turns[-n:]


def test_one_goes_on_for_ever() -> None:
    world = World(Schedule(), storage)
    assert {(turn.ids, turn.apart) for turn in world.run([Talk(3)], 200)} == {((3,), True)}
    assert world.schedule.next([], world.now_s) is None


@pytest.mark.parametrize("n", [2, 5, 8, 16])
def test_where_everything_is_resident_all_go_together(n: int) -> None:
    world = World(Schedule(), resident)
    world.run([Talk(i) for i in range(n)], 400)
    assert {turn.ids for turn in late(world)} == {tuple(range(n))}


def test_where_storage_is_the_limit_one_goes_for_a_slice() -> None:
    world = World(Schedule(60.0), storage)
    world.run([Talk(i) for i in range(8)], 4000)
    sizes = [len(turn.ids) for turn in late(world, 2000)]
    assert sizes.count(1) > 0.8 * len(sizes)  # now and then another size is tried again
    alone = World(Schedule(60.0), storage)
    alone.run([Talk(0)], 1000)
    assert world.tokens / world.now_s > 0.85 * alone.tokens / alone.now_s
    turns = World(Schedule(fixed=(1, 1)), storage)
    turns.run([Talk(i) for i in range(8)], 1000)
    assert world.tokens / world.now_s > 1.5 * turns.tokens / turns.now_s


@pytest.mark.parametrize("max_pause_s", [2.0, 5.0, 60.0])
def test_nobody_pauses_longer_than_may_be(max_pause_s: float) -> None:
    world = World(Schedule(max_pause_s), storage)
    talks = [Talk(i) for i in range(4)]
    world.run(talks, 300)  # costs are known now
    world.longest_pause_s = 0
    world.run(talks, 3000)
    longest_step_s = 0.02 + 0.25 * 4
    assert world.longest_pause_s <= max_pause_s + longest_step_s
    if max_pause_s == 60:
        assert world.longest_pause_s > 10  # what may be is made use of


def test_what_changes_is_learned_again() -> None:
    """First storage is the limit, then the cache holds everything."""
    world = World(Schedule(), storage)
    talks = [Talk(i) for i in range(4)]
    world.run(talks, 1500)
    large = [turn for turn in late(world, 500) if len(turn.ids) > 2]
    assert len(large) < 100  # now and then they are tried again
    world.cost = resident
    world.run(talks, 3000)
    sizes = [len(turn.ids) for turn in late(world, 500)]
    assert sizes.count(4) > 0.8 * len(sizes)


def test_a_long_prompt_stops_nobody() -> None:
    """Pieces of a prompt and tokens of others take turns, each for about as long."""
    world = World(Schedule(), resident)
    talks = [Talk(i) for i in range(3)]
    world.run(talks, 100)
    talks.append(Talk(3, n_pieces=12, since_s=world.now_s))
    turns = world.run(talks, 120)
    pieces = [i for i, turn in enumerate(turns) if turn.prompt]
    assert len(pieces) == 12
    assert all(5 <= b - a <= 10 for a, b in pairwise(pieces))
    assert pieces[0] < LONGEST_SLICE


def test_where_storage_is_the_limit_a_prompt_is_computed_at_once_but_for_pauses() -> None:
    world = World(Schedule(5.0), storage)
    talks = [Talk(i) for i in range(2)]
    world.run(talks, 600)
    world.longest_pause_s = 0
    talks.append(Talk(2, n_pieces=9, since_s=world.now_s))
    turns = world.run(talks, 400)
    pieces = [i for i, turn in enumerate(turns) if turn.prompt]
    assert len(pieces) == 9
    assert any(b - a == 1 for a, b in pairwise(pieces))
    assert world.longest_pause_s <= 5.0 + 1.0 + 1.0  # one step each


def test_many_newcomers_are_all_served() -> None:
    world = World(Schedule(5.0), storage)
    talks = [Talk(i, n_pieces=3) for i in range(16)]
    world.run(talks, 3000)
    assert all(not each.prompts for each in talks)
    served = {id for turn in late(world, 1000) for id in turn.ids}
    assert served == set(range(16))


def test_one_conversation_more_is_no_new_group_to_try_while_storage_is_the_limit() -> None:
    def cost(turn: Turn, in_row: int) -> tuple[float, float]:
        return 0.08 * len(turn.ids) if len(turn.ids) > 1 else 0.06, 0.05

    world = World(Schedule(60.0), cost)
    for n in range(2, 17):
        world.run([Talk(id, since_s=world.now_s) for id in range(n)], 60)
    # Of each doubling one size; the rest are slices of one.
    sizes = {len(turn.ids) for turn in world.turns}
    assert len(sizes) <= 6
    assert sum(len(turn.ids) > 1 for turn in world.turns) < 60


def test_an_answer_that_repeats_itself_does_not_hide_that_storage_is_the_limit() -> None:
    def cost(turn: Turn, in_row: int) -> tuple[float, float]:
        return (1.0, 0.2) if turn.prompt else (0.02, 0.0) if turn.ids == (0,) else (0.06, 0.03)

    world = World(Schedule(60.0), cost)
    talks = [Talk(id, n_pieces=1, begun=False) for id in range(4)]
    turns = world.run(talks, 60)
    assert [turn.ids for turn in turns] == [(0,)] * 60  # it goes on at once after its prompt


@pytest.mark.parametrize("prompt_s", [0.3, 1.1, 2.4])
def test_many_who_come_at_once_stop_nobody_who_has_begun(prompt_s: float) -> None:
    def cost(turn: Turn, in_row: int) -> tuple[float, float]:
        return (prompt_s, prompt_s) if turn.prompt else (0.06 * len(turn.ids), 0.05)

    world = World(Schedule(), cost)
    talks = [Talk(id, n_pieces=1, begun=False) for id in range(16)]
    pauses = []
    n_after = 0
    while n_after < 400:
        n_after += not any(each.n_pieces for each in talks)
        begun = {each.id: each.since_s for each in talks if each.begun}
        (turn,) = world.run(talks, 1)
        pauses += [world.now_s - begun[id] for id in turn.ids if id in begun]
        assert len(world.turns) < 20000
    assert max(pauses) <= 5 + prompt_s + 0.06 * 16  # steps are never cut


def test_where_storage_is_the_limit_newcomers_wait_for_room() -> None:
    schedule = Schedule(
        12.0, max_wait_s=100.0
    )  # 12 s: three more slices of 32 steps that take 0.12 s
    world = World(schedule, storage)
    world.run([Talk(0), Talk(1)], 300)  # costs are known now
    talks = [Talk(i, n_pieces=1, begun=False, since_s=world.now_s) for i in range(8)]
    came_s = world.now_s
    world.run(talks, 300)
    assert sum(each.begun for each in talks) == 4
    assert [each.begun for each in talks[:4]] == [True] * 4  # who came first
    while world.now_s < came_s + 100:
        world.run(talks, 1)
    world.run(talks, 400)
    assert all(each.begun for each in talks)  # nobody waits longer
    quick = World(Schedule(12.0, max_wait_s=100.0), resident)
    quick.run([Talk(0), Talk(1)], 100)
    talks = [Talk(i, n_pieces=1, begun=False, since_s=quick.now_s) for i in range(8)]
    quick.run(talks, 40)
    assert all(each.begun for each in talks)


def test_who_leaves_ends_no_slice_of_others() -> None:
    schedule = Schedule(fixed=(2, 10))
    talks = [Talk(i, since_s=float(i)) for i in range(4)]
    assert schedule.next(talks, 5.0) == Turn((0, 1))
    schedule.measured(Turn((0, 1)), 0.1, 0.0)
    assert schedule.next(talks[1:], 5.1) == Turn((1,))
    assert schedule.next(talks[2:], 5.2) == Turn((2, 3))
    assert schedule.next([talks[3]], 5.3) == Turn((3,))


def test_a_policys_memory_is_told_apart_in_long_slices_only() -> None:
    for length, apart in ((1, False), (8, False), (32, True)):
        world = World(Schedule(fixed=(1, length)), storage)
        assert {turn.apart for turn in world.run([Talk(0), Talk(1)], 100)} == {apart}
    world = World(Schedule(fixed=(2, 64)), storage)
    assert {turn.apart for turn in world.run([Talk(0), Talk(1)], 100)} == {False}


def test_no_more_go_together_than_may() -> None:
    world = World(Schedule(most=1), resident)
    world.run([Talk(i) for i in range(4)], 500)
    assert {len(turn.ids) for turn in world.turns} == {1}


def test_the_same_calls_give_the_same_turns() -> None:
    runs = []
    for _ in range(2):
        world = World(Schedule(), storage)
        runs.append(world.run([Talk(i, n_pieces=i % 3) for i in range(5)], 1000))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])]
)
def test_sizes_that_are_compared(n: int, sizes: list[int]) -> None:
    assert group_sizes(n) == sizes


def test_costs_tell_a_slices_beginning_from_its_end() -> None:
    costs = StepCosts()
    assert (costs.step_s(1, 0), costs.rate(1, 8)) == (0, 0)
    for _ in range(50):
        for n_done in range(16):
            costs.add(1, n_done, 0.4 if n_done < 2 else 0.1, 0.05)
    assert costs.step_s(1, 0) == pytest.approx(0.4)
    assert costs.step_s(1, 40) == pytest.approx(0.1)  # as the latest that was measured
    assert costs.slice_s(1, 10) == pytest.approx(2 * 0.4 + 8 * 0.1)
    assert costs.rate(1, 10) == pytest.approx(10 / 1.6)
    assert costs.waits(1)
    assert costs.step_s(4, 0) == pytest.approx(0.4)  # the nearest size that was measured
    assert costs.table()[1]["late_ms"] == pytest.approx(100)


def test_slices_of_one_follow_the_ring_and_nobody_waits_longer_for_it() -> None:
    world = World(Schedule(20.0), storage)
    talks = [Talk(i) for i in range(6)]
    kinds = np.array([[9, 0], [0, 9]], np.uint32)
    last = None
    world.run(talks, 400)
    world.longest_pause_s = 0
    order = []
    for _ in range(4000):
        (turn,) = world.run(talks, 1)
        if turn.ids != last and len(turn.ids) == 1:
            order.append(turn.ids[0])
            if last is not None and len(last) == 1:
                world.schedule.used(last[0], kinds[last[0] % 2])
        last = turn.ids
    same = sum(a % 2 == b % 2 for a, b in pairwise(order[-60:]))
    assert same > 30  # in the order of their numbers there would be none
    assert world.longest_pause_s <= 20.0 + 0.02 + 0.25 * 6
    for each in talks:
        world.schedule.left(each.id)
    assert world.schedule.next(talks[:1], world.now_s) is not None
