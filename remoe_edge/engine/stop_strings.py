"""Give out text as it comes, whole characters only, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopStrings:
    """Hold back what may be the beginning of a stop string, or of a character."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.found = False

    def take(self, piece: bytes) -> str:
        """Take a token's bytes; return what is certain to be text of the answer."""
        self._held += self._decoder.decode(piece)
        cut = min((at for each in self._stop if (at := self._held.find(each)) >= 0), default=-1)
        if cut >= 0:
            self.found = True
            self._held = self._held[:cut]
        ready = len(self._held) if self.found else len(self._held) - self._begun()
        given, self._held = self._held[:ready], self._held[ready:]
        return given

    def rest(self) -> str:
        """Return what was held back, once no more comes."""
        if self.found:
            return ""
        given, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return given

    def _begun(self) -> int:
        """Count the characters at the end that a stop string could begin with."""
        longest = 0
        for each in self._stop:
            for n in range(min(len(each) - 1, len(self._held)), longest, -1):
                if self._held.endswith(each[:n]):
                    longest = n
                    break
        return longest
