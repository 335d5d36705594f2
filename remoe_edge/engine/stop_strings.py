"""Give out text as it comes, whole characters only, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from remoe_edge.engine.channels import AnswerReader, partial


class StopStrings:
    """Hold back what may be the beginning of a stop string, or of a character."""

    def __init__(self, stop: Sequence[str], reader: AnswerReader) -> None:
        self._stop = stop
        self._reader = reader  # leaves out the reasoning
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.found = False
        self.which = ""  # the one that was found

    def take(self, token: int, piece: bytes) -> str:
        """Take a token and its bytes; return what is certain to be text of the answer."""
        self._held += self._reader.feed(token, self._decoder.decode(piece))
        found = [(at, each) for each in self._stop if (at := self._held.find(each)) >= 0]
        if found:
            cut, self.which = min(found)
            self.found = True
            self._held = self._held[:cut]
        ready = len(self._held) if self.found else len(self._held) - partial(self._held, self._stop)
        given, self._held = self._held[:ready], self._held[ready:]
        return given

    def rest(self) -> str:
        """Return what was held back, once no more comes."""
        if self.found:
            return ""
        given, self._held = self._held, ""
        return given + self._reader.end(self._decoder.decode(b"", final=True))
