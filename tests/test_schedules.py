"""Replaying conversations that take turns: by hand, and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from remoe_edge.cli import cli
from remoe_edge.errors import BudgetError, InputError
from remoe_edge.routing.schedules import (
    Plan,
    conversations,
    parse_plans,
    scheduled,
    simulate,
    turns,
)
from remoe_edge.routing.trace import Trace, from_routed


def two_talks(tokens: int = 8) -> Trace:
    """A trace of two prompts of two tokens and their answers, which use other experts."""
    routed = np.zeros((1, 2 * (2 + tokens), 2), np.int16)
    half = routed.shape[1] // 2
    routed[0, :half] = [0, 1]
    routed[0, half:] = [2, 3]
    trace = from_routed(routed, 4)
    for begin in (0, half):
        trace.phase[begin : begin + 2] = 0
    return trace


def test_turns_are_as_they_are_written() -> None:
    names = [plan.name for plan in parse_plans("turns, batch,3,2x2")]
    assert names == ["alone", "turns", "batch", "3", "2x2"]
    lengths = [3, 1, 2]
    assert list(turns(lengths, Plan("turns", 1, 1))) == [
        [(0, 0)], [(1, 0)], [(2, 0)], [(0, 1)], [(2, 1)], [(0, 2)],
    ]  # fmt: skip
    assert list(turns(lengths, Plan("batch", 0, 0))) == [
        [(0, 0), (1, 0), (2, 0)], [(0, 1), (2, 1)], [(0, 2)],
    ]  # fmt: skip
    assert list(turns(lengths, Plan("2x2", 2, 2))) == [
        [(0, 0), (1, 0)], [(0, 1)], [(2, 0)], [(2, 1)], [(0, 2)],
    ]  # fmt: skip
    for bad in ("0", "x2", "0x3", "often", "2x0"):
        with pytest.raises(InputError, match="no schedule"):
            parse_plans(bad)


def test_answers_are_cut_out_of_a_trace() -> None:
    trace = two_talks()
    found = conversations(trace)
    assert [talk.shape for talk in found] == [(1, 8, 2)] * 2
    assert (found[1] == [2, 3]).all()
    made, whose = scheduled(trace, found, Plan("batch", 0, 0))
    assert list(made.n_tokens) == [2] * 8
    assert (made.token_ids(0) == [[0, 1], [2, 3]]).all()
    assert set(whose) == {-1}
    assert set(scheduled(trace, found, Plan("2", 1, 2))[1]) == {-1}
    assert list(scheduled(two_talks(26), conversations(two_talks(26)), Plan("13", 1, 13))[1]) == (
        [0] * 13 + [1] * 13 + [0] * 13 + [1] * 13
    )
    with pytest.raises(InputError, match="at least two conversations"):
        conversations(from_routed(np.array([[[0, 1]] * 5]), 2))


@pytest.mark.parametrize("policy", ["lru", "reuse-biased"])
def test_misses_by_hand(policy: str) -> None:
    """Two slots hold one conversation's experts: every change of turns reads two."""
    outcomes = simulate(two_talks(), parse_plans("turns,2,8"), [policy], [2])
    misses = {each.schedule: each.misses for each in outcomes}
    assert misses == {"alone": 4, "turns": 32, "2": 16, "8": 4}
    all_fit = simulate(two_talks(), parse_plans("turns,batch"), [policy], [4])
    assert [each.misses for each in all_fit] == [4, 4, 4]
    assert all_fit[0].tokens == 16
    with pytest.raises(BudgetError):
        simulate(two_talks(), parse_plans("turns"), [policy], [1])


def test_a_conversations_own_past_decides_what_it_keeps() -> None:
    """Each conversation has a pair that it always uses, and draws two others each time. With a memory
    for both together, the pair of who pauses looks as good as the one of who goes on."""
    random = np.random.default_rng(0)
    routed = np.zeros((2, 2 * 402, 4), np.int16)
    for talk in (0, 1):
        for token in range(402):
            for layer in (0, 1):
                drawn = 8 + random.permutation(24)[:2]
                routed[layer, talk * 402 + token] = [4 * talk, 4 * talk + 1, *drawn]
    trace = from_routed(routed, 32)
    for begin in (0, 402 * 2):
        trace.phase[begin : begin + 4] = 0
    talks = conversations(trace)
    made, whose = scheduled(trace, talks, Plan("32", 1, 32))
    from remoe_edge import _core

    columns = made.columns()
    counts = [
        _core.simulate(each, 2, 32, 20, "reuse-biased")["misses"]
        for each in ({**columns, "conversation": whose}, columns)
    ]
    assert counts[0] < counts[1]


def test_the_command(tmp_path: Path) -> None:
    path, out = tmp_path / "t.trace", tmp_path / "o.json"
    two_talks().save(path)
    asked = [
        "simulate", str(path), "--schedule", "turns,batch,4", "--cache", "2,4", "--policy", "lru",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, [*asked, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "times alone" in result.output
    found = json.loads(out.read_text())["schedules"]
    assert [(row["slots"], row["schedule"]) for row in found[:4]] == [
        (2, "alone"), (2, "turns"), (2, "batch"), (2, "4"),
    ]  # fmt: skip
    for more in (["--warm", "3"], ["--policy", "optimal"], ["--schedule", "often"]):
        assert CliRunner().invoke(cli, [*asked, *more]).exit_code != 0


def test_every_policy_that_is_asked_for_is_replayed(tmp_path: Path) -> None:
    """The oracle too, which knows each schedule's own future. Three slots hold one and a half of two
    conversations' pairs: where they take turns by token, a miss a turn is the least."""
    path = tmp_path / "t.trace"
    two_talks().save(path)
    asked = ["simulate", str(path), "--schedule", "turns", "--cache", "3", "--json", "--policy"]
    for policy in ("lru,belady", "all"):
        rows = json.loads(CliRunner().invoke(cli, [*asked, policy]).output)["schedules"]
        misses = {(row["policy"], row["schedule"]): row["misses"] for row in rows}
        assert misses["belady", "alone"] == 4
        assert misses["belady", "turns"] == 18
        assert {name for name, _ in misses} >= set(policy.split(",")) - {"all"}
        assert all(misses["belady", plan] <= made for (_, plan), made in misses.items())
