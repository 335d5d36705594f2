"""A few bad days of engines, the same each time; tools/fuzz_engine.py has as many as one likes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import fuzz_engine
from fuzz.episode import Episode, Session, Wrong


def test_engines_keep_their_promises_on_bad_days() -> None:
    figures, wrong = fuzz_engine.fuzz(1, episodes=4)
    assert not wrong
    assert figures["rows compared"] > 20, figures
    assert figures["answers"] > 10, figures
    assert figures["side by side"] > 5, figures
    assert figures["drafted"] > 0, figures


@pytest.mark.slow
def test_many_bad_days() -> None:
    figures, wrong = fuzz_engine.fuzz(1000, seconds=300)
    assert not wrong
    assert figures["failed"] > 10, figures
    assert figures["interrupted"] > 10, figures


def test_a_wrong_bit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is no mere ceremony: one changed bit of one logit ends the episode."""
    compare = Session.compare

    def spoiled(session: Session) -> None:
        session.calls.rows[0].view("u4")[7] ^= 1
        compare(session)

    monkeypatch.setattr(Session, "compare", spoiled)
    with pytest.raises(Wrong, match="1 logits differ"):
        Episode(tmp_path, 2, Counter()).run()
