"""Options that are fine alone are fine together; tools/option_pairs.py tries every two of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import option_pairs
from pairs.options import covering, pairs, refused
from pairs.trial import Heard, Wrong

# Two threads wait for each other while others keep the processors busy; a plan measures for a second.
SLOW = ("threads=2", "cache=plan")
COVERED = covering(SLOW)


def ends(*trials: tuple[str, ...]) -> dict[tuple[str, ...], option_pairs.Outcome]:
    return {
        names: (end, why)
        for names, (end, why) in option_pairs.tried(trials).items()
        if end != "right"
    }


def test_every_two_that_go_together_do_so_among_others() -> None:
    both = {pair for row in COVERED for pair in zip_pairs(row)}
    wanted = {pair for pair in pairs() if not refused(*pair) and not set(SLOW) & set(pair)}
    assert wanted <= both
    assert not ends(*COVERED)


def zip_pairs(row: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(one, other) for i, one in enumerate(row) for other in row[i + 1 :]]


def test_steps_of_more_tokens_than_a_prompt_is_cut_into() -> None:
    """A step of guesses, or of several conversations, once ended the process: n_batch was less."""
    assert not ends(
        *(("n_batch=1", several) for several in ("draft=on", "draft=mtp", "parallel=9"))
    )


def test_a_plan_beside_what_checks_peers() -> None:
    assert not ends(("cache=plan", "peers=nobody"))


@pytest.mark.slow
def test_every_pair() -> None:
    found = option_pairs.tried(pairs())
    for names, (end, why) in found.items():
        assert end == ("refused" if refused(*names) else "right"), (names, why)


def test_a_wrong_token_or_bit_is_found() -> None:
    heard = Heard({"short": ([1, 2], [-0.5, -0.25])})
    heard.check(heard, "both")
    with pytest.raises(Wrong, match="and not"):
        Heard({"short beside others": ([1, 3], [-0.5, -0.25])}).check(heard, "both")
    with pytest.raises(Wrong, match="log probabilities"):
        Heard({"short": ([1, 2], [-0.5, -0.2500001])}).check(heard, "both")


def test_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(json.dumps([["cache=floor", "policy=lru"], "wrong", "as was told"]) + "\n")
    found = option_pairs.tried([("cache=floor", "policy=lru")], record)
    assert found == {("cache=floor", "policy=lru"): ("wrong", "as was told")}
