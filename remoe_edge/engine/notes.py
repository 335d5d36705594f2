"""Notes: what the user should know of an engine, in the order in which it was said.

Most are said once. What is said again and again, such as that a peer comes and goes, is renewed: the
later line takes the place of the one before, so that the list stays short however long an engine runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Functions and files have other names each time, so that there is no end of them.
MOST_RENEWED = 256
_LEFT_OUT = "left out"


@dataclass(frozen=True)
class _Note:
    number: int  # of all that were ever said
    text: str
    about: str | None  # None: said once


class Notes:
    """Hold notes; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: list[_Note] = []
        self._n_said = self._n_left_out = 0

    def append(self, text: str) -> None:
        """Say something that stays."""
        with self._lock:
            self._add(text, None)

    def extend(self, texts: Iterable[str]) -> None:
        """Say several such things."""
        for text in texts:
            self.append(text)

    def renew(self, about: str, text: str) -> None:
        """Say how something stands now, in place of what was said about it before."""
        with self._lock:
            self._notes = [each for each in self._notes if each.about != about]
            self._add(text, about)
            renewed = [each for each in self._notes if each.about not in (None, _LEFT_OUT)]
            if len(renewed) <= MOST_RENEWED:
                return
            self._n_left_out += 1
            gone = (renewed[0].about, _LEFT_OUT)
            self._notes = [each for each in self._notes if each.about not in gone]
            self._add(f"{self._n_left_out} older notes are left out", _LEFT_OUT)

    def again(self, text: str) -> None:
        """Say what happens again and again, be it in other words: the last ones of all stay."""
        self.renew(text, text)

    def since(self, number: int) -> tuple[list[str], int]:
        """List what was said after the first `number` notes and stands, and count all up to now."""
        with self._lock:
            later = [each.text for each in self._notes if each.number > number]
            return later, self._n_said

    def _add(self, text: str, about: str | None) -> None:
        self._n_said += 1
        self._notes.append(_Note(self._n_said, text, about))

    def __iter__(self) -> Iterator[str]:
        return iter(self.since(0)[0])
