"""Several answers side by side, and drafted ones, on a bad day: what ends has the tokens it has alone.

Everything is drawn from one seed. Conversations join, are cancelled, and are computed in slices and
groups; reads fail, steps are interrupted, another thread resizes the cache. What is checked:

    tokens    an answer that ended has the tokens that the same engine gives alone, a step at a time
    failures  only what was made to fail fails, and the others go on
    places    afterwards every place is free, and the engine gives the right answers alone
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_moe
from fuzz.wrong import Wrong
from remoe_edge import Engine, ReadError
from remoe_edge.engine.conversation import Conversation
from remoe_edge.engine.schedule import Schedule
from remoe_edge.errors import UnsupportedError
from remoe_edge.native import _core

N_CTX = 256
N_ACTIONS = 24
NEAR = 0.05  # of the largest logit: what is quantised after rounding parts further


class Heard:
    """Keep how an answer ended."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def piece(self, text: str) -> None:
        """Leave the text: tokens are compared."""

    def ended(self) -> None:
        """Leave it."""

    def failed(self, error: Exception) -> None:
        """Keep it."""
        self.error = error


class Together:
    """One engine with several places, then one that drafts."""

    def __init__(self, folder: Path, seed: int, figures: Counter[str]) -> None:
        self.draw, self.figures = random.Random(seed), figures
        self.arch = self.draw.choice(tiny_moe.ARCHS)
        self.path = tiny_moe.make(folder / "m.gguf", self.arch, "Q8_0")
        self.layers = _core.ModelFile.open(str(self.path)).expert_layers
        self.faulty = self.spoiled = False
        base = self._prompt(self.draw.choice((2, 40, 70)))
        # Some begin alike, so that they share what they can.
        self.prompts = [[*base, *self._prompt(3)] for _ in range(2)]
        self.prompts += [self._prompt(self.draw.choice((1, 9, 80))) for _ in range(3)]
        self.alone: dict[tuple[int, int], list[int]] = {}

    def _prompt(self, n: int) -> list[int]:
        return [self.draw.randrange(5, 300) for _ in range(n)]

    def run(self) -> None:
        """Run it. Raises Wrong, or whatever the engine should not have raised."""
        with self._opened(parallel=self.draw.choice((1, 2, 3, 4))) as engine:
            self._side_by_side(engine)
        with contextlib.suppress(UnsupportedError), self._opened(draft="on") as engine:
            self._drafted(engine)

    @contextlib.contextmanager
    def _opened(self, **more: Any) -> Iterator[Engine]:
        draw = self.draw
        settings: dict[str, Any] = {
            "cache": draw.choice(("60%", "80%", "100%", "auto")),
            "prefetch": draw.choice(("on", "off")),
            "policy": draw.choice(_core.live_policy_names()),
            "io": draw.choice(("auto", "pread")),
            "n_batch": draw.choice((32, 512)),
            "threads": 1, "n_ctx": N_CTX, "publish": False, **more,
        }  # fmt: skip
        with Engine(self.path, **settings) as engine:
            engine._loaded.is_end = lambda token: False  # type: ignore[method-assign]
            yield engine
            self.figures["engines"] += 1

    # --- side by side ---

    def _side_by_side(self, engine: Engine) -> None:
        draw = self.draw
        group = draw.choice((1, 1, 0))  # in groups, sums may round in another way
        batch = engine.batch(Schedule(fixed=(group, draw.choice((1, 3, 20)))))
        native = engine.native
        assert native is not None
        begun: list[tuple[Conversation, Heard, int, int]] = []
        with _resizing(native, draw.random() < 0.5, self.figures):
            for _ in range(N_ACTIONS):
                kind = draw.random()
                if kind < 0.4 and batch.n_free:
                    which, n = draw.randrange(len(self.prompts)), draw.choice((1, 2, 12))
                    heard = Heard()
                    with self._going_wrong():
                        asked = batch.join(self.prompts[which], heard, max_tokens=n, temperature=0)
                        begun.append((asked, heard, which, n))
                elif kind < 0.5:
                    self._faults(native)
                elif kind < 0.55 and begun:
                    draw.choice(begun)[0].cancel()
                elif kind < 0.6:
                    native.interrupt()
                for _ in range(draw.choice((0, 1, 4))):
                    with self._going_wrong():
                        batch.step()
            native.set_faults(_core.FaultPlan())
            self.faulty = False
            while True:
                with self._going_wrong():
                    if not batch.step():
                        break
        if batch.conversations:
            raise Wrong("a conversation has not ended")
        batch.close()
        for asked, heard, which, n in begun:
            self._check(engine, asked, heard, which, n, exact=group == 1)

    def _check(
        self, engine: Engine, asked: Conversation, heard: Heard, which: int, n: int, *, exact: bool
    ) -> None:
        self.figures["side by side"] += 1
        if heard.error is not None:
            if not self.spoiled:
                raise Wrong(f"failed without a cause: {heard.error!r}")
            self.figures["failed"] += 1
            return
        if asked.finish_reason == "cancelled":
            return
        again = engine._loaded.recurrent and self.spoiled  # computed anew, in other pieces
        if exact and not again and asked.token_ids != self._alone(engine, which, n):
            raise Wrong(f"{asked.token_ids} beside others, {self._alone(engine, which, n)} alone")
        if len(asked.token_ids) != n:
            raise Wrong(f"{len(asked.token_ids)} tokens of {n}")

    def _alone(self, engine: Engine, which: int, n: int) -> list[int]:
        if (which, n) not in self.alone:
            engine.reset()
            answer = engine.generate(self.prompts[which], max_tokens=n, temperature=0)
            answer.read()
            self.alone[which, n] = answer.token_ids
        return self.alone[which, n]

    # --- drafted ---

    def _drafted(self, engine: Engine) -> None:
        native = engine.native
        assert native is not None
        with _resizing(native, self.draw.random() < 0.5, self.figures):
            for _ in range(8):
                if self.draw.random() < 0.4:
                    self._faults(native)
                which = self.draw.randrange(len(self.prompts))
                prompt = [*self.prompts[which], *self.prompts[which][-9:]]  # something to look up
                stop = self.draw.random() < 0.3
                with self._going_wrong():
                    answer = engine.generate(prompt, max_tokens=16, temperature=0)
                    next(answer)
                    if stop:
                        native.interrupt()
                    answer.read()
                    self.figures["drafted"] += 1
            native.set_faults(_core.FaultPlan())
            self.faulty = False
            drafted = []
            for prompt in self.prompts:
                engine.reset()
                with self._going_wrong():
                    engine.evaluate(prompt)  # whatever was begun before the faults ended
                engine.reset()
                answer = engine.generate(prompt, max_tokens=12, temperature=0)
                answer.read()
                drafted.append(answer.token_ids)
        engine._loaded.settings = engine._loaded.settings.replace(draft="off")
        for prompt, tokens in zip(self.prompts, drafted, strict=True):
            engine.reset()
            answer = engine.generate(prompt, max_tokens=12, temperature=0)
            answer.read()
            self._check_drafted(engine, prompt, tokens, answer.token_ids)

    def _check_drafted(
        self, engine: Engine, prompt: list[int], drafted: list[int], plain: list[int]
    ) -> None:
        """Hold that they are the same, or part where two tokens are as good as equally likely.

        Some kernels of llama.cpp round several rows in another way than one (docs/drafts.md).
        """
        if drafted == plain:
            return
        at = next(i for i, pair in enumerate(zip(drafted, plain, strict=True)) if len({*pair}) > 1)
        row = engine.evaluate([*prompt, *plain[:at]])
        apart = abs(float(row[plain[at]] - row[drafted[at]]))
        if apart > NEAR * float(abs(row).max()):
            raise Wrong(f"{drafted} drafted, {plain} one by one, apart by {apart}")
        self.figures["ties"] += 1

    # --- what goes wrong ---

    def _faults(self, native: Any) -> None:
        draw = self.draw
        self.faulty = draw.random() < 0.6
        plan: dict[str, int] = {"interruptions": draw.randrange(3)}
        if self.faulty:
            self.spoiled = True
            matrix = draw.choice(draw.choice(self.layers).matrices)
            plan |= {
                "range_file": matrix.shard,
                "range_offset": matrix.offset + draw.randrange(4) * matrix.expert_bytes,
                "range_bytes": matrix.expert_bytes * draw.randrange(1, 4),
                "range_times": draw.choice((-1, 1, 3)),
                "delay_us": draw.randrange(300),
            }
        native.set_faults(_core.FaultPlan(**plan))
        self.figures["faults"] += self.faulty

    @contextlib.contextmanager
    def _going_wrong(self) -> Iterator[None]:
        try:
            yield
        except ReadError:
            if not self.spoiled:
                raise
            self.figures["failed"] += 1
        except KeyboardInterrupt:
            self.spoiled = True
            self.figures["interrupted"] += 1


@contextlib.contextmanager
def _resizing(native: Any, wanted: bool, figures: Counter[str]) -> Iterator[None]:
    """Have another thread resize the cache all the while, as `--cache auto` does."""
    if not wanted:
        yield
        return
    ended = threading.Event()
    least, most = max(1, native.n_experts_used), native.most_slots
    sizes = random.Random(most)

    def resize() -> None:
        while not ended.is_set():
            native.resize(sizes.randrange(least, most + 1))
            figures["resizes"] += 1
            time.sleep(0.002)

    thread = threading.Thread(target=resize)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        native.finish_resize()
