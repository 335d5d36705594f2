"""When guesses pay: they go on while a token gets cheaper by the clock, and lose next to nothing else.

The clock is a model of one: a plain step costs 10 ms, and each guess so much more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from remoe_edge.engine.draft_governor import MOST_GUESSES, Governor

PLAIN_MS = 10.0


class Text:
    """Count what a text of so many tokens takes; `right` says how many of the next ones come true."""

    def __init__(self, governor: Governor, each_ms: float) -> None:
        self.governor, self.each_ms = governor, each_ms
        self.ms, self.n_guessing, self.n_steps = 0.0, 0, 0

    def read(self, n_tokens: int, right: Callable[[int], int]) -> Text:
        at = 0
        while at < n_tokens:
            n = self.governor.n_guesses()
            n_right = min(right(at), n)
            ms = PLAIN_MS + n * self.each_ms
            self.governor.after(ms, n, n_right)
            self.ms += ms
            self.n_steps += 1
            self.n_guessing += n > 0
            at += 1 + n_right
        self.at = at
        return self

    @property
    def lost(self) -> float:
        """Give what guessing has cost, in plain steps."""
        return self.ms / PLAIN_MS - self.at


def test_what_a_plain_step_costs_comes_first() -> None:
    assert Governor().n_guesses() == 0
    text = Text(Governor(), 6).read(2, lambda at: 0)
    assert text.n_guessing == 0


def test_guesses_that_come_true_stay_grow_and_are_compared_now_and_then() -> None:
    text = Text(Governor(), 3).read(2000, lambda at: 99)
    assert text.governor.n_guesses() in (0, MOST_GUESSES)
    assert text.n_guessing > 0.9 * text.n_steps
    assert text.n_steps - text.n_guessing >= text.n_steps // (Governor.PLAIN_EVERY + 1)
    assert text.lost < -1000


@pytest.mark.parametrize("each_ms", [2, 5, 7, 10, 20])
def test_guesses_that_are_wrong_end_within_a_few_steps(each_ms: float) -> None:
    text = Text(Governor(), each_ms).read(30, lambda at: 0)
    assert text.n_guessing <= 6
    assert text.lost <= Governor.DEBT + max(2, each_ms / PLAIN_MS * Governor.FIRST_LENGTH)


@pytest.mark.parametrize("each_ms", [5, 7, 10, 20])
def test_over_a_long_text_they_cost_less_than_one_in_a_hundred(each_ms: float) -> None:
    assert Text(Governor(), each_ms).read(3000, lambda at: 0).lost < 30


def test_guesses_that_come_true_and_cost_more_than_they_save_end_too() -> None:
    text = Text(Governor(), 11).read(3000, lambda at: 99)
    assert text.lost < 30
    assert text.n_guessing < 120


def breaking_off(run: int, gap: int) -> Callable[[int], int]:
    """Repeat `run` tokens, break off, and have `gap` whose guesses are all wrong."""
    return lambda at: max(0, run - at % (run + gap))


@pytest.mark.parametrize("run", [0, 1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("gap", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("each_ms", [4, 7, 9])
def test_repeats_that_break_off_lose_next_to_nothing(run: int, gap: int, each_ms: float) -> None:
    text = Text(Governor(), each_ms).read(2000, breaking_off(run, gap))
    assert text.lost < 0.015 * text.at


def against(governor: Governor, each_ms: float, seed: int) -> Iterator[int]:
    """Come true just until the governor trusts it, and be wrong then."""
    rng = random.Random(seed)
    while True:
        n = governor.n_guesses()
        trusted = governor._balance > rng.uniform(0, Governor.CREDIT)
        yield 0 if trusted else n


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("each_ms", [4, 7, 9])
def test_a_text_that_plays_against_it_wins_little(seed: int, each_ms: float) -> None:
    governor = Governor()
    text = against(governor, each_ms, seed)
    assert Text(governor, each_ms).read(2000, lambda at: next(text)).lost < 40


def test_many_short_answers_do_not_each_pay_for_a_trial() -> None:
    governor = Governor()
    text, n_tokens = Text(governor, 8), 0
    for _ in range(100):
        governor.begin()
        text.read(12, lambda at: 0)
        n_tokens += text.at
    assert text.ms / PLAIN_MS - n_tokens < 20
    assert text.n_guessing < 20


def test_they_come_back_when_a_text_begins_to_repeat_itself() -> None:
    governor = Governor()
    Text(governor, 8).read(1000, lambda at: 0)
    assert Text(governor, 3).read(3000, lambda at: 99).lost < -500


def test_one_read_that_takes_long_does_not_end_them() -> None:
    governor = Governor()
    Text(governor, 3).read(200, lambda at: 99)
    governor.after(60.0, 6, 6)
    assert Text(governor, 3).read(340, lambda at: 99).n_guessing > 40


def test_one_plain_step_that_takes_long_makes_no_guess_look_cheap() -> None:
    governor = Governor()
    for ms in (10, 10, 10, 500):
        governor.after(ms, 0, 0)
    assert Text(governor, 12).read(60, lambda at: 0).n_guessing <= 6


def test_told_to_it_guesses_whatever_it_costs() -> None:
    text = Text(Governor(always=True), 99).read(50, lambda at: 0)
    assert text.n_guessing == text.n_steps
    assert 1 <= text.governor.n_guesses() <= MOST_GUESSES


def test_a_clock_that_stands_still_ends_nothing_and_divides_by_nothing() -> None:
    governor = Governor()
    for n in (0, 0, 2, 2, 0, 2):
        governor.after(0.0, n, 0)
    assert governor.n_guesses() >= 0
