"""Say how many tokens a step may guess, so that guesses are made only while a token gets cheaper."""

from __future__ import annotations

MOST_GUESSES = 6  # with the token before them: from eight rows on ggml rounds in another way


class Governor:
    """Compare steps with guesses and plain steps by the clock. One source of guesses, one thread.

    What guesses gain and lose is summed up, in plain steps. Once they have lost more than `DEBT` they
    pause, and each time twice as long until they have earned again what they lost. What they gained
    before pays for up to `CREDIT` more, so that one repeat that breaks off does not end them. A guess
    that came true lets the next one be longer, a wrong one makes it shorter.

    It outlives an answer, so that many short answers do not each pay for a trial of their own.
    always: guess whatever it costs.
    """

    DEBT, CREDIT = 1.0, 2.0
    PLAIN_FIRST = 2  # plain steps of every answer, and
    PLAIN_EVERY = 16  # one among so many, to know what a token costs
    FIRST_PAUSE, LONGEST_PAUSE = 32, 1024  # plain steps
    FIRST_LENGTH = 2
    _FADE = 0.8
    _OUTLIER = 3.0  # times what is known

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self._plain_ms: float | None = None
        self._balance = 0.0  # since the last pause
        self._total = 0.0
        self._wait, self._pause = self.PLAIN_FIRST, self.FIRST_PAUSE
        self._since_plain = 0
        self._length = self.FIRST_LENGTH

    def begin(self) -> None:
        """Begin an answer: what a token costs in it is not known."""
        self._plain_ms = None
        self._since_plain = 0
        self._wait = max(self._wait, self.PLAIN_FIRST)
        self._balance = min(self._balance, 0.0)
        self._length = self.FIRST_LENGTH

    def n_guesses(self) -> int:
        """Say how many tokens the next step may guess."""
        if not self._always and (self._wait > 0 or self._since_plain >= self.PLAIN_EVERY):
            return 0
        return self._length

    def after(self, ms: float, n_guessed: int, n_right: int) -> None:
        """Take in what a step cost that guessed so many tokens, and how many were right."""
        if n_guessed == 0:
            self._since_plain = 0
            self._wait = max(0, self._wait - 1)
            known = self._plain_ms
            if known is not None:  # one read that took long says nothing of the next steps
                ms = known * self._FADE + min(ms, self._OUTLIER * known) * (1 - self._FADE)
            self._plain_ms = ms
            return
        if n_right == n_guessed:
            self._length = min(max(self._length, n_guessed) + 2, MOST_GUESSES)
        else:
            self._length = max(1, n_right)
        self._since_plain += 1
        if self._plain_ms:
            self._judge(1 + n_right - ms / self._plain_ms)

    def _judge(self, gained: float) -> None:
        self._balance = min(self._balance + gained, self.CREDIT)
        self._total = min(self._total + gained, self.CREDIT)
        if self._total >= self.CREDIT:
            self._pause = self.FIRST_PAUSE
        elif self._balance < -self.DEBT:
            self._balance = 0.0
            self._length = 1
            self._wait, self._pause = self._pause, min(2 * self._pause, self.LONGEST_PAUSE)
