"""An engine's notes stay short, whatever is said again and again."""

from __future__ import annotations

from remoe_edge.engine.notes import MOST_RENEWED, Notes


def test_what_is_renewed_stands_once_and_as_it_is_now() -> None:
    notes = Notes()
    notes.append("first")
    for i in range(1000):
        notes.renew("a peer", f"lost {i} times")
        notes.renew("another", f"late {i} times")
    notes.extend(["last", "last"])
    assert list(notes) == ["first", "lost 999 times", "late 999 times", "last", "last"]


def test_whoever_has_heard_some_hears_what_is_new() -> None:
    notes = Notes()
    notes.append("one")
    notes.renew("a peer", "is there")
    heard, number = notes.since(0)
    assert heard == ["one", "is there"]
    assert notes.since(number) == ([], number)
    notes.renew("a peer", "is gone")
    notes.append("two")
    notes.renew("a peer", "is there again")
    heard, number = notes.since(number)
    assert heard == ["two", "is there again"]
    assert notes.since(number) == ([], number)


def test_that_others_are_left_out_is_said() -> None:
    notes = Notes()
    notes.append("stays")
    for i in range(MOST_RENEWED + 3):
        notes.renew(f"function {i}", f"function {i} is gone")
    told = list(notes)
    assert len(told) == MOST_RENEWED + 2
    assert told[0] == "stays"
    assert told[1] == "function 3 is gone"
    assert told[-1] == "3 older notes are left out"
