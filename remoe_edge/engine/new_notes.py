"""What an engine has noted since somebody looked last."""

from __future__ import annotations


class NewNotes:
    """Follow a list of notes, which only grows, from where it is now. One thread at a time."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._n_seen = len(notes)

    def take(self) -> list[str]:
        """Give what has come since the last call."""
        new = self._notes[self._n_seen :]
        self._n_seen += len(new)
        return new
