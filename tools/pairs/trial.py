"""One trial: an engine with some options, what everybody asks of it, and what must hold.

tokens    and their log probabilities are those of the plainest engine with the same bits; with loss
          by what the cache holds, those of a second trial
refused   what does not go together is refused before work begins, in one line, and makes no file
files     what features have written can be read, by the same engine and by one with no other option
nothing   no descriptor, thread or file is left
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from conversations import join
from conversations import run as run_all
from pairs.material import Material
from remoe_edge import Engine
from remoe_edge.engine import drafts
from remoe_edge.engine.draft_governor import Governor
from remoe_edge.engine.drafts import PromptLookup
from remoe_edge.engine.heads import Heads
from remoe_edge.engine.kept_states import LEAST_TOKENS
from remoe_edge.engine.lossy import MEANS
from remoe_edge.engine.schedule import Schedule
from remoe_edge.errors import BudgetError, RemoeError
from remoe_edge.remote.worker import Worker
from remoe_edge.routing.trace import read_trace

N_CTX = 640
N_NEXT = 8  # tokens of the answer to a next turn
N_TOKENS = 16  # of the others
SHORT = [5, 9, 40, 7, 12, 5, 9, 40, 7, 33, 21, 5, 9, 40]
TURN = [9, 8, 7]  # what a user adds to a conversation
FILES = ("profile", "past_prompts", "trace", "telemetry")
KEPT = ("profile", "past_prompts", "states")  # those that a later engine reads
MOST_PLACES = 9
BESIDE = " beside others"  # of an answer's name


class Wrong(Exception):
    """Say which promise was broken."""


@dataclass
class Heard:
    """Hold what came of the questions: (tokens, log probabilities) by name."""

    answers: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    row: bytes = b""  # logits

    def check(self, expected: Heard, what: str, *, exact: bool = True) -> None:
        """Raise Wrong where an answer is another one. exact: to the last bit, not the tokens alone."""
        for name, found in self.answers.items():
            wanted = expected.answers.get(name) or expected.answers[name.removesuffix(BESIDE)]
            if found[0] != wanted[0]:
                raise Wrong(f"{what}: {name}: {found[0]} and not {wanted[0]}")
            if exact and found[1] != wanted[1]:
                raise Wrong(f"{what}: {name}: other log probabilities")
        if self.row and expected.row and self.row != expected.row:
            raise Wrong(f"{what}: other logits")


def long_prompt(n_ctx: int, n_ubatch: int) -> list[int]:
    """Give a prompt of more tokens than are computed at once, as far as the context has room."""
    room = n_ctx - N_TOKENS - len(TURN) - N_NEXT - 1
    return [(37 * i + 11) % 200 + 5 for i in range(min(530 if n_ubatch > 100 else 70, room))]


class Trial:
    """Try one set of options. folder: of this trial alone, empty."""

    def __init__(self, names: Sequence[str], material: Material, folder: Path) -> None:
        self.options = dict(each.split("=") for each in names)
        self._material, self._folder = material, folder
        # What drafts guess: how many tokens are before it, and the answer.
        self._known: tuple[int, list[int]] = (0, [])

    # --- what it is ---

    def settings(self, folder: Path) -> dict[str, Any]:
        """Give the keywords of the engine; files lie in `folder`."""
        model = self.options.get("model", "usual")
        made: dict[str, Any] = {"cache": "40%", "threads": 1, "n_ctx": N_CTX}
        for name, value in self.options.items():
            if name in ("model", "states"):
                continue
            if name in FILES or name == "publish":
                made[name] = folder / name
            elif name == "routers":
                made[name] = self._material.routers(model)
            elif name == "cache":
                floor = str(self._material.floor(model))
                made[name] = {"floor": floor, "plan": "plan:3600s"}.get(value, value)
            elif name in ("n_ctx", "n_batch", "n_ubatch", "parallel", "threads", "depth"):
                made[name] = int(value)
            elif name in MEANS:
                made[name] = float(value)
            elif name in ("repack", "stream", "direct", "lock", "verbose", "hedge", "reproducible"):
                made[name] = value == "on"
            elif name != "peers":
                made[name] = value
        if "coarse_below" in self.options:
            self._material.coarse(model)
        return made

    @property
    def model(self) -> Path:
        """Give the model's path."""
        return self._material.model(self.options.get("model", "usual"))

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Engine]:
        """Have an engine, and the worker that it asks."""
        settings = self.settings(folder)
        with contextlib.ExitStack() as stack:
            if peers := self.options.get("peers"):
                settings["peers"] = [
                    stack.enter_context(self._worker()) if peers == "worker" else _nobody()
                ]
            try:
                engine = Engine(self.model, **settings)
            except BudgetError as error:
                least = re.search(r"use --cache (\d+)KiB", str(error))
                if self.options.get("cache") != "floor" or least is None:
                    raise
                engine = Engine(self.model, **{**settings, "cache": f"{least[1]}KiB"})
            stack.enter_context(engine)
            engine._loaded.is_end = lambda token: False  # type: ignore[method-assign]
            yield engine

    @contextlib.contextmanager
    def _worker(self) -> Iterator[str]:
        worker = Worker(self.model, experts="all", memory="64MiB", listen="127.0.0.1:0", threads=1)
        try:
            yield worker.address
        finally:
            worker.stop()

    # --- what is asked ---

    def run(self, expected: Heard | None) -> Heard:
        """Run it; return what came of it. Raises RemoeError where it is refused, Wrong, and others."""
        with self._guessing():
            with contextlib.ExitStack() as stack:
                engine = stack.enter_context(self.opened(self._folder))
                try:
                    heard = self._ask(engine, expected)
                    self._side_by_side(engine, heard)
                    json.dumps(engine.stats().to_dict(), allow_nan=False)
                    json.dumps(engine._loaded.facts(), allow_nan=False)
                    _check_notes(engine.notes)
                except RemoeError as error:
                    raise Wrong(f"after loading: {type(error).__name__}: {error}") from error
            self._check_files()
            if any(name in self.options for name in KEPT):
                try:
                    self._again(heard, expected)
                except RemoeError as error:
                    raise Wrong(f"opened again: {type(error).__name__}: {error}") from error
        return heard

    def _long(self, engine: Engine) -> list[int]:
        return long_prompt(engine.n_ctx, min(engine.settings.n_ubatch, engine.settings.n_batch))

    def _ask(self, engine: Engine, expected: Heard | None) -> Heard:
        heard = Heard()
        if engine._loaded.encodes:
            heard.row = engine.embed(SHORT[: engine.longest_embedded]).tobytes()
            return heard
        answers = expected.answers if expected else {}

        def ask(name: str, prompt: list[int], n: int) -> list[int]:
            self._known = (len(prompt), answers.get(name, ([], []))[0])
            answer = engine.generate(prompt, max_tokens=n, temperature=0, logprobs=1, bos=False)
            answer.read()
            if len(answer.token_ids) != n:
                raise Wrong(f"{name}: {len(answer.token_ids)} tokens and not {n}")
            heard.answers[name] = (answer.token_ids, _values(answer.logprobs))
            return answer.token_ids

        ask("short", SHORT, N_TOKENS)
        engine.reset()
        long = self._long(engine)
        said = ask("long", long, N_TOKENS)
        ask("next", [*long, *said, *TURN], N_NEXT)
        heard.row = engine.evaluate(SHORT).tobytes()
        engine.evaluate(SHORT, every=True)
        return heard

    def _side_by_side(self, engine: Engine, heard: Heard) -> None:
        if engine._loaded.encodes:
            self._embed(engine, heard)
            return
        long = self._long(engine)
        batch = engine.batch(Schedule(fixed=(1, 4)))
        if "states" in self.options:
            batch.keep_states(self._folder / "states", 1 << 30)
        begun = {}
        for name, prompt in (("short", SHORT), ("long", long)):
            if not batch.n_free:
                run_all(batch)
            begun[name] = join(batch, prompt, N_TOKENS, logprobs=1)
        run_all(batch)
        if "states" in self.options:  # the next turn goes on with what was kept
            batch.close()
            batch = engine.batch(Schedule(fixed=(1, 4)))
            batch.keep_states(self._folder / "states", 1 << 30)
        turn = [*long, *begun["long"][0].token_ids, *TURN]
        begun["next"] = join(batch, turn, N_NEXT, logprobs=1)
        n_reused, n_kept = begun["next"][0].n_reused, len(long) + N_TOKENS - 1
        if "states" in self.options and n_kept >= LEAST_TOKENS and n_reused != n_kept:
            raise Wrong(
                f"of a kept conversation {n_reused} tokens are used again, and not {n_kept}"
            )
        run_all(batch)
        if "states" in self.options and not n_reused:  # computed anew, in other pieces
            del begun["next"]
        for name, (asked, told) in begun.items():
            if told.error is not None:
                raise Wrong(f"{name} beside others: {told.error!r}")
            heard.answers[f"{name}{BESIDE}"] = (asked.token_ids, _values(asked.logprobs))
        batch.close()
        batch = engine.batch(Schedule(fixed=(0, 4)))
        together = [
            join(batch, [5 + i, *SHORT], N_TOKENS) for i in range(min(batch.n_free, MOST_PLACES))
        ]
        run_all(batch)
        for asked, told in together:
            if told.error is not None or len(asked.token_ids) != N_TOKENS:
                raise Wrong(f"together: {told.error!r}, {len(asked.token_ids)} tokens")
        batch.close()

    def _embed(self, engine: Engine, heard: Heard) -> None:
        with contextlib.closing(engine.batch()) as batch:
            if "states" in self.options:
                batch.keep_states(self._folder / "states", 1 << 30)
            for _ in range(batch.n_free + 1):
                if batch.embed(SHORT[: engine.longest_embedded]).tobytes() != heard.row:
                    raise Wrong("another vector beside others")

    def _again(self, heard: Heard, expected: Heard | None) -> None:
        """Have the files read by the same engine once more."""
        with self.opened(self._folder) as engine:
            again = self._ask(engine, expected)
            if "states" in self.options:
                self._go_on(engine, again)
            # With loss, a second engine begins with another cache.
            for name in heard.answers.keys() & {"short", "next"}:
                if again.answers[name] != heard.answers[name] and expected is not None:
                    raise Wrong(f"opened again: {name} is another answer")

    def _go_on(self, engine: Engine, heard: Heard) -> None:
        if engine._loaded.encodes:
            return
        long = self._long(engine)
        with contextlib.closing(engine.batch(Schedule(fixed=(1, 4)))) as batch:
            batch.keep_states(self._folder / "states", 1 << 30)
            turn = [*long, *heard.answers["long"][0], *TURN]
            asked, told = join(batch, turn, N_NEXT, logprobs=1)
            run_all(batch)
            if told.error is not None:
                raise Wrong(f"going on: {told.error!r}")
            if not asked.n_reused:  # kept under other settings: computed anew, in other pieces
                return
            heard.answers[f"next{BESIDE}"] = (asked.token_ids, _values(asked.logprobs))

    def read_after(self, before: Trial, expected: Heard) -> None:
        """Run with the files that another trial's engine has written."""
        self._folder = before._folder
        with self.opened(self._folder) as engine:
            heard = self._ask(engine, expected)
            if "states" in self.options:
                self._go_on(engine, heard)
        heard.check(expected, "files of both, read without the other")

    # --- what is looked at ---

    def _check_files(self) -> None:
        left = {each.name for each in self._folder.iterdir()}
        known = {*FILES, "publish", "states"} & self.options.keys()
        if left - known:
            raise Wrong(f"left over: {sorted(left - known)}")
        if "publish" in left and (shown := list((self._folder / "publish").iterdir())):
            raise Wrong(f"still published: {shown}")
        if "trace" in self.options:
            trace = read_trace(self._folder / "trace")
            if not trace.n_events:
                raise Wrong("an empty trace")
        if "telemetry" in self.options:
            lines = (self._folder / "telemetry").read_text().splitlines()
            kinds = {json.loads(line).get("record") for line in lines}
            if not {"header", "end"} <= kinds:
                raise Wrong(f"telemetry of {len(lines)} lines, {kinds}")

    @contextlib.contextmanager
    def _guessing(self) -> Iterator[None]:
        """Have drafts guess what is known, wrong now and then: random models hardly repeat."""
        trial, draft = self, self.options.get("draft")

        class Oracle(PromptLookup):
            def guess(self, n_most: int) -> list[int]:
                n_prompt, known = trial._known
                at = len(self._tokens) - n_prompt
                told = known[at : at + n_most] if draft != "mtp" else []
                return [token ^ (at % 5 == 4) for token in told]

        run = Heads._run

        def told(heads: Heads, some: Any) -> int:
            run(heads, some)
            n_prompt, known = trial._known
            at = some[-1].position + 1 - n_prompt
            return known[at] ^ (at % 5 == 4) if 0 <= at < len(known) else 0

        with contextlib.ExitStack() as stack:
            if draft is not None:
                stack.enter_context(mock.patch.object(drafts, "PromptLookup", Oracle))
            if draft == "mtp":
                always = functools.partial(_always, Governor)
                stack.enter_context(mock.patch.object(drafts, "Governor", always))
                stack.enter_context(mock.patch.object(Heads, "_run", told))
            yield


def _always(governor: type[Governor], *, always: bool) -> Governor:
    return governor(always=True)


def _values(found: Any) -> list[float]:
    return [each.logprob for each in found]


def _nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def _check_notes(notes: Sequence[str]) -> None:
    for note in notes:
        if "\n" in note or len(note) > 400:
            raise Wrong(f"a note of several lines: {note!r}")
