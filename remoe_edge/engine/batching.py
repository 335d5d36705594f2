"""Continuous batching: many answers of one engine, a step at a time; they join and leave between steps.

A step is a piece of one prompt, or one token of each of several conversations. A piece of a prompt is
never computed together with anything else, and a conversation has a part of the context to itself: alone
in its steps it gets the bits that it gets alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.engine import embedding
from remoe_edge.engine import request as requests
from remoe_edge.engine.conversation import Conversation, Listener
from remoe_edge.engine.counters import Counts
from remoe_edge.engine.finite import require_finite
from remoe_edge.engine.kept_states import KeptStates, state_key
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.observers import Step
from remoe_edge.engine.places import Places
from remoe_edge.engine.schedule import Schedule, Turn
from remoe_edge.engine.shared_costs import SharedCosts
from remoe_edge.engine.step_batch import StepBatch
from remoe_edge.errors import InputError, ModelError, RemoeError


class ContinuousBatch:
    """Answer many requests with one engine, which gives no other answers until `close`.

    Dropping it closes it. Used from one thread, but for `Conversation.cancel`. Everything raises
    InputError once the engine is closed, and UnsupportedError in a forked child.
    """

    def __init__(
        self,
        loaded: Loaded,
        schedule: Schedule,
        clock: Callable[[], float] = time.perf_counter,
        *,
        engine: object = None,
    ) -> None:
        self._engine = engine  # it lives as long as this
        self._turn = object()  # what the engine is busy with: not this, so that it can be dropped
        self._loaded, self._schedule, self._clock = loaded, schedule, clock
        self._running: dict[int, Conversation] = {}  # by place
        self._life = loaded.life
        with self._life.running(self._turn):
            self._life.begin(self._turn)
            loaded.empty()
            self._piece = int(loaded.llama.n_batch)
            self._batch = StepBatch(max(self._piece, loaded.n_places))
            self._places = Places(
                loaded.llama, loaded.n_places, self._piece, recurrent=loaded.recurrent
            )
            self._costs = SharedCosts(loaded.counts)
            self._declared = ("", -1)
            self._slice_of: int | None = None  # whose slice is being computed apart
            self._uses: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)  # as it began
        self._note_unused()

    def _note_unused(self) -> None:
        """Say what the engine was given and one answer at a time would use."""
        loaded = self._loaded
        for name, feature in (
            ("past prompts", loaded.past_prompts),
            ("functions", loaded.functions),
        ):
            if feature is not None:
                loaded.notes.append(f"{name} are not used while answers are made side by side")
        if loaded.settings.draft != "off":
            loaded.notes.append("nothing is drafted while answers are made side by side")

    # --- what it is ---

    @property
    def n_free(self) -> int:
        """Count the places that no conversation has."""
        return self._places.n_free

    @property
    def conversations(self) -> list[Conversation]:
        """List the answers that are being made."""
        return list(self._running.values())

    @property
    def schedule(self) -> Schedule:
        """Give what decides whose turn it is, and knows what steps have cost."""
        return self._schedule

    @property
    def why_not_shared(self) -> str:
        """Say why conversations do not share what their prompts have in common; "" where they do."""
        return self._places.why_not

    # --- joining and leaving ---

    def join(
        self,
        prompt: str | Sequence[int],
        listener: Listener,
        *,
        on_reasoning: Callable[[str], object] | None = None,
        goes_on: bool = False,
        **settings: Any,
    ) -> Conversation:
        """Begin an answer, the settings of which are those of `Engine.generate`; `step` makes it.

        goes_on: the prompt is a conversation's next turn, and holds what was answered before.
        REQUIRES: n_free. Raises InputError for an argument that makes no sense and for a prompt that
        does not fit a conversation's context, ReadError where the model's files have changed.
        """
        for each in ("piece", "ended", "failed"):
            if not callable(getattr(listener, each, None)):
                raise InputError(f"the listener has no {each}(): {listener!r}")
        with self._life.running(self._turn):
            loaded = self._loaded
            request = requests.asked(loaded, prompt, **settings)
            if loaded.native is not None:
                loaded.native.check_unchanged()
            if not self._places.n_free:
                raise InputError(f"all {loaded.n_places} places of the context are taken")
            place = self._places.take(request.tokens, goes_on=goes_on)
            try:
                begun = Conversation(
                    loaded, request, place, listener, on_reasoning=on_reasoning, now_s=self._clock()
                )
            except BaseException:
                self._places.leave(place)
                raise
            loaded.last = begun.stats
            loaded.observers.begin(len(request.tokens))
            self._running[place.id] = begun
            if not request.max_tokens:
                begun.stats.stop = "length"
            return begun

    def embed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute the vector of a text in a free place; as `Engine.embed`. REQUIRES: n_free."""
        with self._life.running(self._turn):
            loaded = self._loaded
            ids = requests.token_ids(tokens, int(loaded.llama.n_vocab()))
            embedding.check(loaded, len(ids))
            if loaded.native is not None:
                loaded.native.check_unchanged()
            place = self._places.take_empty()
            try:
                self._declare("prompt", -1)
                return embedding.compute(loaded, self._batch, place.id, ids)
            finally:
                if loaded.llama is not None:
                    self._places.forget(place)
                self._places.leave(place)
                self._costs.skip()

    def keep_states(self, folder: Path, most_bytes: int) -> None:
        """Keep conversations in a folder from now on, so that they go on after a restart.

        Raises RemoeError where nothing can be kept there.
        """
        loaded = self._loaded
        with self._life.reading():
            key = state_key(loaded.path, loaded.settings, loaded.n_ctx)
            self._places.states = KeptStates(
                loaded.llama, folder, key, most_bytes, loaded.notes.again
            )

    def close(self) -> None:
        """Cut off what runs, and let the engine give other answers. Idempotent."""
        try:
            for each in list(self._running.values()):
                each.stats.stop = each.stats.stop or "cancelled"
                self._leave(each)
            if not self._life.closing and not self._life.forked:
                with self._life.running(self._turn):
                    self._places.save_all()
                    self._declare("by-tokens", -1)
                    self._loaded.empty()
        finally:
            self._life.end(self._turn)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    # --- a step ---

    def step(self) -> bool:
        """Compute the next step; return whether there was one.

        What goes wrong with an answer is told to its listener, and the others go on. Raises what is
        nobody's: InputError where the engine is closed, KeyboardInterrupt.
        """
        with self._life.running(self._turn):
            for each in list(self._running.values()):
                if each.cancelled and not each.over:
                    each.stats.stop = "cancelled"
                if each.over:
                    self._end(each)
            turn = self._schedule.next(list(self._running.values()), self._clock())
            if turn is None:
                return False
            self._take(turn)
            return True

    def _take(self, turn: Turn) -> None:
        members = [self._running[id] for id in turn.ids]
        self._note_uses(turn.ids[0] if turn.apart else None)
        begun_s = self._clock()
        try:
            wanted = self._compute(members, turn)
        except (KeyboardInterrupt, RemoeError) as error:
            self._failed(members, error)
            return
        now_s = self._clock()
        before, after = self._costs.step(members)
        if turn.prompt:  # what it has cost is asked for with its first token
            self._costs.settle()
        for member, index in wanted:
            self._sample(member, index, now_s)
        if turn.prompt and not wanted:
            members[0].since_s = now_s
        if self._loaded.observers:
            spent = Counts.between(before, after)
            self._tell(members, begun_s, now_s, spent, prompt=turn.prompt)
        waited_s = (after.get("stall_ns", 0) - before.get("stall_ns", 0)) / 1e9
        self._schedule.measured(turn, self._clock() - begun_s, waited_s)
        for each in members:
            if each.over:
                self._end(each)

    def _note_uses(self, one: int | None) -> None:
        """Tell the schedule which experts a slice has used, where another's begins."""
        native = self._loaded.native
        if one == self._slice_of or native is None:
            return
        uses = native.uses()
        if self._slice_of is not None and len(self._uses) == len(uses):
            self._schedule.used(self._slice_of, uses - self._uses)
        self._slice_of, self._uses = one, uses

    def _compute(self, members: list[Conversation], turn: Turn) -> list[tuple[Conversation, int]]:
        """Compute; return whose token is to be sampled, and from which logits."""
        batch, llama = self._batch, self._loaded.llama
        batch.clear()
        if turn.prompt:
            parts = [members[0].pending(self._piece)]
            at = [batch.add(members[0].id, len(members[0].place.tokens), parts[0], wanted=True)]
        else:
            members.sort(key=lambda each: each.id)
            parts = [each.pending(1) for each in members]
            batch.add_ones(
                (each.id, len(each.place.tokens), part[0])
                for each, part in zip(members, parts, strict=True)
            )
            at = list(range(len(members)))
        alone = members[0] if len(members) == 1 else None
        talk = members[0].place.talk if turn.apart else -1
        self._declare("prompt" if turn.prompt else "decode", talk)
        if alone is not None:
            alone.runs_with(self._loaded.interrupt)
        try:
            with self._loaded.computing(lambda: self._recover(members)):
                if not all(each.cancelled for each in members):
                    batch.decode(llama)
                else:
                    return []
        finally:
            if alone is not None:
                alone.runs_with(None)
        return [
            (each, index)
            for each, part, index in zip(members, parts, at, strict=True)
            if each.computed(part, self._piece)
        ]

    def _declare(self, kind: str, talk: int) -> None:
        """Tell the core what the steps are for, and whose, where that changes."""
        if (kind, talk) != self._declared and self._loaded.native is not None:
            self._loaded.native.declare_steps(kind, talk)
            self._declared = (kind, talk)

    def _sample(self, member: Conversation, index: int, now_s: float) -> None:
        loaded = self._loaded
        row = loaded.row(index)
        try:
            if row is None:
                raise RemoeError("llama.cpp has computed no logits")
            require_finite(row, len(member.place.tokens), loaded.path)
            member.sample(loaded.llama._ctx, index, row, now_s)
        except ModelError as error:
            self._places.forget(member.place)  # what follows must not be computed from it
            self._fail(member, error)
        except Exception as error:
            self._fail(member, error)

    # --- what goes wrong ---

    def _recover(self, members: list[Conversation]) -> None:
        if self._loaded.llama is None:
            return
        for each in members:
            self._places.recover(each.place)
            each.lost()

    def _failed(self, members: list[Conversation], error: BaseException) -> None:
        """Find out whose failure a step's is: each of several is tried alone."""
        if self._life.closing:
            raise error
        if len(members) > 1 and isinstance(error, RemoeError):
            for each in members:
                self._take(Turn((each.id,), prompt=each.prompts))
            return
        for each in members:
            if each.cancelled:
                each.stats.stop = "cancelled"
                self._end(each)
            elif isinstance(error, Exception):
                self._fail(each, error)
            else:
                raise error

    def _fail(self, member: Conversation, error: Exception) -> None:
        member.stats.stop = "error"
        self._leave(member)
        member.listener.failed(error)

    def _end(self, member: Conversation) -> None:
        if self._running.get(member.id) is not member:
            return
        try:
            if member.stats.stop != "cancelled":
                member.rest()
        except Exception as error:  # the listener's
            self._fail(member, error)
            return
        self._leave(member)
        member.listener.ended()

    def _leave(self, member: Conversation) -> None:
        del self._running[member.id]
        self._places.leave(member.place)
        self._schedule.left(member.id)
        if self._slice_of == member.id:
            self._slice_of = None
        member.free()
        self._costs.settle()
        member.account(self._costs.names)
        self._loaded.observers.answer(member.stats)
        if not self._running and not self._life.closing:
            self._loaded.warm()

    # --- what it cost ---

    def _tell(
        self,
        members: list[Conversation],
        begun_s: float,
        now_s: float,
        spent: dict[str, Any],
        *,
        prompt: bool,
    ) -> None:
        """Tell the observers of a token of each member, or of a prompt that has led to its first."""
        if not prompt:
            step = Step("decode", len(members), begun_s, now_s, **spent)
        elif members[0].stats.n_generated == 1:
            (first,) = members
            cost = first.prompt_cost(self._costs.names)
            step = Step("prefill", len(first.request.tokens), first.came_s, now_s, **cost)
        else:
            return
        self._loaded.observers.step(step)
