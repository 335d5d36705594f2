"""The places of a context, one conversation each. What can be used again is not computed again.

Using it again never changes an answer. A new prompt takes over whole pieces from the beginning, cut where
it would have been cut itself (every `n_batch` tokens): the same tokens, computed in the same pieces, have
the same bits. Only a conversation that goes on (its prompt holds the one before and the beginning of its
answer) takes over all that matches, as `Engine.chat` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remoe_edge.native import llama_cpp

if TYPE_CHECKING:
    from remoe_edge.engine.kept_states import KeptStates

_low = llama_cpp.llama_cpp

_OPENING = 4  # tokens of a template that open an answer without reasoning: <think> and its end
_LEAST_PROMPT = 32  # tokens: of shorter ones a match says little


@dataclass
class Place:
    """Hold what the context has of one conversation.

    tokens: those that have been computed. talk: a number that no other conversation has had. n_prompt: of
    the tokens, the last prompt's. n_whole: of them, those that were computed in whole pieces from the
    beginning.
    """

    id: int
    tokens: list[int] = field(default_factory=list)
    talk: int = -1
    n_prompt: int = 0
    n_whole: int = 0
    busy: bool = False
    left: int = 0  # when its last answer ended, counted in answers

    def took(self, tokens: Sequence[int], piece: int) -> None:
        """Note that tokens were computed after those that are there."""
        if len(tokens) == piece and self.n_whole == len(self.tokens):
            self.n_whole += piece
        self.tokens.extend(tokens)

    def cut(self, n: int, piece: int) -> None:
        """Note that only the first n tokens are left."""
        del self.tokens[n:]
        self.n_whole = min(self.n_whole, n // piece * piece)
        self.n_prompt = min(self.n_prompt, n)


class Places:
    """Give places to conversations. One thread; llama: its context has `n_places` sequences.

    piece: tokens of a prompt that are computed at once. recurrent: tokens cannot be taken back.
    """

    def __init__(self, llama: Any, n_places: int, piece: int, *, recurrent: bool) -> None:
        self._llama = llama
        self._memory = _low.llama_get_memory(llama.ctx)
        self._piece = piece
        self._recurrent = recurrent
        self._n_left = self._n_talks = 0
        self.all = tuple(Place(id) for id in range(n_places))
        self.states: KeptStates | None = None
        self.why_not = (
            "this model's layers keep a state that cannot be taken back or shared: a prompt is only "
            "gone on with where it holds all of the one before and its answer"
            if recurrent
            else ""
        )

    @property
    def n_free(self) -> int:
        """Count the places that no conversation has."""
        return sum(not place.busy for place in self.all)

    def take(self, prompt: Sequence[int], *, goes_on: bool = False) -> Place:
        """Give a free place to a prompt, with as much of it as can be used again: `place.tokens`.

        goes_on: the prompt is known to be a conversation's next turn. REQUIRES: n_free.
        """
        free = [place for place in self.all if not place.busy]
        going_on = [(n, place) for place in free if (n := self._goes_on(place, prompt, goes_on))]
        n, place = max(going_on, key=lambda each: each[0], default=(0, self._least(free)))
        if self._found_again(place, prompt, n, goes_on):
            n = common(place.tokens, prompt)
        if n:
            self._keep(place, min(n, len(prompt) - 1))
        else:
            self._save(place)
            self._share(place, prompt)
            self._n_talks += 1
            place.talk = self._n_talks
        place.busy = True
        place.n_prompt = len(prompt)
        return place

    def take_empty(self) -> Place:
        """Give a free place with nothing in it. REQUIRES: n_free."""
        place = self._least([place for place in self.all if not place.busy])
        self._save(place)
        self._keep(place, 0)
        place.busy = True
        return place

    @staticmethod
    def _least(free: Sequence[Place]) -> Place:
        return min(free, key=lambda each: (bool(each.tokens), each.left))

    def save_all(self) -> None:
        """Keep what is in the places, where states are kept."""
        for place in self.all:
            self._save(place)

    def _save(self, place: Place) -> None:
        if self.states is not None and len(place.tokens) > place.n_prompt:
            self.states.save(place.id, place.tokens, place.n_prompt)

    def _found_again(self, place: Place, prompt: Sequence[int], n_here: int, goes_on: bool) -> bool:
        """Put into a place a kept conversation that a prompt goes on with, if more of it than n_here."""
        if self.states is None:
            return False
        best, kept = n_here, None
        for each in self.states.kept:
            n = min(common(each.tokens, prompt), len(prompt) - 1)
            whole = n == len(each.tokens) or not self._recurrent
            if n > best and whole and _is_next(n, each.n_prompt, len(prompt), goes_on):
                best, kept = n, each
        if kept is None:
            return False
        self._save(place)
        self._keep(place, 0)
        if not self.states.load(kept, place.id):
            self._keep(place, 0)
            return False
        place.tokens, place.n_prompt, place.n_whole = list(kept.tokens), kept.n_prompt, 0
        self._n_talks += 1
        place.talk = self._n_talks
        return True

    def leave(self, place: Place) -> None:
        """Take a place back; what is in it may be used again."""
        self._n_left += 1
        place.busy, place.left = False, self._n_left

    def recover(self, place: Place) -> None:
        """Find out what is left of a place after a step that failed."""
        n = 0 if self._recurrent else _low.llama_memory_seq_pos_max(self._memory, place.id) + 1
        self._keep(place, min(n, len(place.tokens)))

    def forget(self, place: Place) -> None:
        """Empty a place."""
        self._keep(place, 0)

    def _goes_on(self, place: Place, prompt: Sequence[int], goes_on: bool) -> int:
        """Count the tokens of a conversation that a prompt goes on with; 0 where it is another one."""
        n = min(common(place.tokens, prompt), len(prompt) - 1)
        if not _is_next(n, place.n_prompt, len(prompt), goes_on) or not self._can_cut(place, n):
            return 0
        return n

    def _can_cut(self, place: Place, n: int) -> bool:
        if n == len(place.tokens):
            return True
        # A window that slides may have let go of what the tokens before the cut would look at.
        return not self._recurrent and _low.llama_memory_seq_pos_min(self._memory, place.id) <= 0

    def _share(self, place: Place, prompt: Sequence[int]) -> None:
        """Have a free place begin with what another, or itself, has of a prompt in whole pieces."""
        n, source = 0, place
        for each in self.all:
            if self._recurrent or not each.n_whole:
                continue
            usable = min(common(each.tokens, prompt), each.n_whole, len(prompt) - 1)
            usable = usable // self._piece * self._piece
            better = usable > n or (usable == n and each is place)
            if usable and better and self._can_cut(each, usable):
                n, source = usable, each
        if n and source is not place:
            self._keep(place, 0)
            _low.llama_memory_seq_cp(self._memory, source.id, place.id, -1, -1)
            place.tokens, place.n_whole = list(source.tokens), source.n_whole
        self._keep(place, n)

    def _keep(self, place: Place, n: int) -> None:
        if not _low.llama_memory_seq_rm(self._memory, place.id, n, -1):
            n = 0
            _low.llama_memory_seq_rm(self._memory, place.id, -1, -1)
        place.cut(n, self._piece)


def _is_next(n_common: int, n_prompt: int, n_new: int, goes_on: bool) -> bool:
    """Say whether a prompt of n_new tokens is the next turn of a conversation whose last had n_prompt.

    It is where it holds that prompt and some of its answer. Templates leave reasoning out of what was
    said: of a longer prompt that is known to go on, the few tokens that opened it may be missing, too.
    """
    if n_common > n_prompt:
        return True
    may_lack = goes_on and n_new > n_prompt >= _LEAST_PROMPT
    return may_lack and n_prompt - n_common <= _OPENING


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens that two lists have in common at their beginning."""
    least, most = 0, min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    while most - least > 1:  # a[:least] is equal, a[:most] is not
        middle = (least + most) // 2
        if a[least:middle] == b[least:middle]:
            least = middle
        else:
            most = middle
    return least
