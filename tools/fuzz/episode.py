"""An engine's bad day: random settings, questions, faults and interrupts, compared with stock at the end.

Everything is drawn from one seed. What storage and threads make of it varies from run to run, so what is
checked holds whatever happens:

    bits      every step that ended gave the logits that stock llama.cpp gives for the same calls
    tokens    a greedy answer took the likeliest token each time; one seed draws one answer
    failures  only what was made to fail fails, with an error of this package's; then all is well again
    free      after an answer that was dropped, cancelled or broken off, the engine gives the next one
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import stock
import tiny_moe
from fuzz.calls import Calls
from fuzz.together import Together
from fuzz.wrong import Wrong
from remoe_edge import Engine, ReadError
from remoe_edge.errors import BudgetError
from remoe_edge.native import _core

N_CTX = 320
N_TOKENS = 300  # of the tiny models' vocabulary, without the special ones
N_ACTIONS = 14
SIDE_BY_SIDE_EVERY = 4  # seeds: those are episodes of several answers at a time, and of drafts


class Thrown(Exception):
    """Be what somebody throws into an answer."""


class Episode:
    """One model, and a few engines of it one after another, with the files that outlive them."""

    def __init__(self, folder: Path, seed: int, figures: Counter[str]) -> None:
        self.draw = random.Random(seed)
        self.folder, self.figures = folder, figures
        quant = self.draw.choice(tiny_moe.QUANTS)
        self.arch = self.draw.choice(tiny_moe.ARCHS)
        with contextlib.suppress(ValueError):
            self.path = tiny_moe.make(
                folder / "m.gguf", self.arch, quant, n_split=self.draw.choice((1, 1, 2))
            )
        if not hasattr(self, "path"):  # not every architecture has every format
            self.path = tiny_moe.make(folder / "m.gguf", self.arch, "Q8_0")
        self.file = _core.ModelFile.open(str(self.path))
        self.prompts = [self._prompt() for _ in range(4)]

    def _prompt(self) -> list[int]:
        n = self.draw.choice((1, 1, 2, 7, 23, 64, 150))
        return [self.draw.randrange(5, N_TOKENS) for _ in range(n)]

    def run(self) -> None:
        """Run it. Raises Wrong, or whatever the engine should not have raised."""
        for _ in range(self.draw.choice((1, 1, 2))):
            settings = self._settings()
            with self._opened(settings) as engine:
                session = Session(self, engine)
                for _ in range(N_ACTIONS):
                    session.act()
                if self.draw.random() < 0.5:
                    session.calm()
                else:  # closed in the midst of things
                    session.dropped = engine.generate(self.prompts[0], max_tokens=9)
                    with session.going_wrong():
                        next(session.dropped, None)
            session.compare()
            self.figures["engines"] += 1

    def _settings(self) -> dict[str, Any]:
        draw = self.draw
        model = _core.StreamedModel.open(str(self.path))
        floor = model.budget_for(max(1, model.n_experts_used))
        cache = draw.choice((str(floor), str(floor), f"{draw.randrange(20, 100)}%", "100%", "auto"))
        settings = {
            "cache": cache,
            "policy": draw.choice(_core.live_policy_names()),
            "prefetch": draw.choice(("on", "on", "auto", "off")),
            "io": draw.choice(("auto", "io_uring", "pread")),
            "direct": draw.random() < 0.5,
            "depth": draw.choice((0, 1, 2, 7)),
            "threads": draw.choice((1, 1, 1, 2)),
            "n_ctx": N_CTX,
            "n_batch": draw.choice((32, 512)),
            "n_ubatch": draw.choice((16, 512)),
            "repack": draw.random() < 0.2,
            "publish": False,
        }
        for name, one_in in (("profile", 2), ("past_prompts", 3), ("trace", 4)):
            if draw.randrange(one_in) == 0:
                settings[name] = self.folder / name
        return settings

    @contextlib.contextmanager
    def _opened(self, settings: dict[str, Any]) -> Iterator[Engine]:
        """Open an engine, with what can be had where that is less than was drawn."""
        for less in ({}, {"io": "pread"}, {"cache": "100%", "io": "pread"}):
            try:
                engine = Engine(self.path, **{**settings, **less})
            except BudgetError:  # a cache below the floor: it says so
                self.figures["refused"] += 1
                settings["cache"] = "100%"
                continue
            except Exception:
                if settings["io"] != "io_uring" or less:  # it is not everywhere
                    raise
                continue
            with engine:
                yield engine
            return
        raise Wrong(f"no engine for {settings}")


class Session:
    """What happens to one engine."""

    def __init__(self, episode: Episode, engine: Engine) -> None:
        self.episode, self.engine = episode, engine
        self.draw, self.figures = episode.draw, episode.figures
        native = engine.native
        assert native is not None
        self.native = native
        self.faulty = self.tainted = False
        self.stop_in: int | None = None  # steps until one is interrupted as it begins
        self.dropped: object = None
        self.calls = Calls(engine.llama, self._before_step)
        self.interrupting = False
        settings = engine.settings
        self.stock = {
            "n_ctx": engine.n_ctx,
            "n_ubatch": min(settings.n_ubatch, settings.n_batch, engine.n_ctx),
            "n_threads": settings.threads,
            "use_extra_bufts": settings.repack,
        }

    def act(self) -> None:
        """Do one thing; it may fail where something was made to."""
        self.figures["actions"] += 1
        action: Callable[[], None] = self.draw.choices(
            (self.answer, self.evaluate, self.faults, self.interrupt, self.look, self.twice),
            (8, 4, 3, 2, 1, 1),
        )[0]
        action()

    def calm(self) -> None:
        """End all faults; then every question has its answer."""
        self.native.set_faults(_core.FaultPlan())
        self.faulty = self.tainted = False
        self.stop_in = None
        self.native.finish_warm_start()
        for prompt in self.episode.prompts:
            with contextlib.suppress(ReadError):  # begun before the faults ended
                self.engine.evaluate(prompt)
            self.engine.evaluate(prompt)

    # --- the actions ---

    def answer(self) -> None:
        """Ask for an answer: greedy or drawn, read to its end or not."""
        draw = self.draw
        prompt = draw.choice(self.episode.prompts)
        if draw.random() < 0.3:
            prompt = [*prompt, draw.randrange(5, N_TOKENS)]
        greedy = draw.random() < 0.6
        how: dict[str, Any] = {"temperature": 0}
        if not greedy:
            how = {
                "temperature": draw.choice((0.3, 1.0, 2.0)),
                "top_k": draw.choice((0, 1, 40)),
                "top_p": draw.choice((0.5, 1.0)),
                "min_p": draw.choice((0.0, 0.1)),
                "repeat_penalty": draw.choice((1.0, 1.3)),
                "seed": draw.randrange(2**31),
            }
        how["max_tokens"] = draw.choice((0, 1, 1, 1, 2, 12, 40))
        how["logprobs"] = draw.choice((None, None, 3))
        ending = draw.choices(("read", "close", "throw", "cancel", "drop"), (10, 1, 1, 1, 1))[0]
        n_read = draw.randrange(4)
        begin = len(self.calls.rows)
        with self.going_wrong():
            answer = self.engine.generate(prompt, **how)
            for _ in range(n_read if ending != "read" else 0):
                next(answer, None)
            if ending == "read":
                answer.read()
            elif ending == "throw":
                with contextlib.suppress(Thrown, StopIteration):
                    answer.throw(Thrown())
            elif ending == "cancel":
                answer.cancel()
                answer.read()
            else:
                answer.close()
            self.figures["answers"] += 1
            self.figures["tokens"] += len(answer.token_ids)
            if greedy:
                self._check_greedy(answer.token_ids, begin)

    def _check_greedy(self, tokens: list[int], begin: int) -> None:
        """Hold each token against the logits it was taken from, the last rows of this answer."""
        rows = self.calls.rows[begin:]
        if len(rows) < len(tokens):  # the prompt was in the context already: its logits are older
            rows = self.calls.rows[begin - 1 :]
        # A step may have been computed for a piece that nobody read.
        for first in range(len(rows) - len(tokens) + 1):
            if all(int(rows[first + i].argmax()) == token for i, token in enumerate(tokens)):
                return
        raise Wrong(f"{tokens} are not the likeliest tokens")

    def evaluate(self) -> None:
        """Compute tokens, from the start or going on."""
        draw = self.draw
        tokens = draw.choice(self.episode.prompts)
        reset = draw.random() < 0.5
        if not reset:
            tokens = tokens[: draw.choice((1, 1, 8))]
            reset = self.engine.llama.n_tokens + len(tokens) > self.engine.n_ctx
        lost = self.engine._loaded.lost and not reset
        with self.going_wrong():
            if lost:  # a hybrid model's context went with a failed step: going on is refused
                return
            row = self.engine.evaluate(tokens, reset=reset, every=draw.random() < 0.2)
            if row.tobytes() != self.calls.rows[-1].tobytes():
                raise Wrong("evaluate returned other logits than it computed")
            self.figures["evaluations"] += 1

    def faults(self) -> None:
        """Begin or end faults below the retries."""
        draw = self.draw
        plan: dict[str, int] = {}
        self.tainted |= self.faulty
        self.faulty = draw.random() < 0.5
        if self.faulty:
            if draw.random() < 0.5:
                plan["fail_operation"] = draw.randrange(12)
            else:
                layer = draw.choice(self.episode.file.expert_layers)
                matrix = draw.choice(layer.matrices)
                plan |= {
                    "range_file": matrix.shard,
                    "range_offset": matrix.offset
                    + draw.randrange(layer.n_experts) * matrix.expert_bytes,
                    "range_bytes": matrix.expert_bytes * draw.randrange(1, 4),
                    "range_times": draw.choice((-1, 1, 3)),
                }
        if draw.random() < 0.3:
            plan["short_bytes"] = 4096
        plan["interruptions"] = draw.randrange(3)
        if draw.random() < 0.3:
            plan["delay_us"] = draw.randrange(300)
        self.native.set_faults(_core.FaultPlan(**plan))
        self.figures["faults"] += self.faulty

    def interrupt(self) -> None:
        """Stop a step as it begins, or somewhere in it."""
        if self.draw.random() < 0.5:
            self.stop_in = self.draw.randrange(3)
            return
        wait_s, prompt = self.draw.random() * 0.01, self.draw.choice(self.episode.prompts)

        def stop() -> None:
            time.sleep(wait_s)
            self.native.interrupt()

        thread = threading.Thread(target=stop)
        self.interrupting = True
        try:
            with self.going_wrong():
                thread.start()
                self.engine.generate(prompt, max_tokens=4, temperature=0).read()
        finally:
            thread.join()
            self.interrupting = False

    def look(self) -> None:
        """Ask for figures, wait for what is read, forget the conversation."""
        self.engine.stats()
        self.engine.tokenize("hello there")
        if self.draw.random() < 0.5:  # as `--cache auto` does while memory comes and goes
            floor = max(1, self.native.n_experts_used)
            self.native.resize(self.draw.randrange(floor, self.native.most_slots + 1))
            self.native.finish_resize()
            self.figures["resizes"] += 1
        if self.draw.random() < 0.5:
            self.native.finish_warm_start()
        if self.draw.random() < 0.5:
            self.engine.reset()

    def twice(self) -> None:
        """Draw one answer twice from one seed."""
        prompt, seed = self.draw.choice(self.episode.prompts), self.draw.randrange(2**31)
        texts = []
        for _ in range(2):
            self.engine.reset()
            with self.going_wrong():
                answer = self.engine.generate(prompt, temperature=1.0, max_tokens=5, seed=seed)
                texts.append((answer.read(), answer.token_ids))
        if len(texts) == 2 and texts[0] != texts[1]:
            raise Wrong(f"one seed, two answers: {texts}")

    # --- what may go wrong ---

    def _before_step(self, number: int) -> None:
        if self.stop_in is None:
            return
        if self.stop_in == 0:
            self.native.interrupt()
            self.interrupting, self.stop_in = True, None
        else:
            self.stop_in -= 1

    @contextlib.contextmanager
    def going_wrong(self) -> Iterator[None]:
        """Let only that fail which was made to."""
        try:
            yield
        except ReadError:
            if not self.faulty and not self.tainted:
                raise
            self.figures["failed"] += 1
        except KeyboardInterrupt:
            if not self.interrupting:
                raise Wrong("interrupted without a cause") from None
            self.figures["interrupted"] += 1
        finally:
            self.interrupting = False
            self.tainted = self.tainted and self.faulty

    def compare(self) -> None:
        """Hold every row of logits against stock llama.cpp's, bit for bit."""
        theirs = stock.replay(self.episode.path, self.calls.done, **self.stock)
        ours = self.calls.rows
        if len(ours) != len(theirs):
            raise Wrong(f"{len(ours)} steps, {len(theirs)} of stock")
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one.tobytes() != other.tobytes():
                n = int(np.count_nonzero(one != other))
                steps = [call for call in self.calls.done if call[0] == "decode"]
                raise Wrong(
                    f"step {i} of {len(ours)} ({len(steps[i][1])} tokens): {n} logits differ"
                )
        self.figures["rows compared"] += len(ours)


def main() -> None:
    """Run the episodes whose seeds come in, a line each; tell how each ended."""
    import json
    import os
    import tempfile
    import traceback

    import fuzz_engine

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        figures: Counter[str] = Counter()
        end, text = "right", ""
        with tempfile.TemporaryDirectory(dir=fuzz_engine.FAST) as folder:
            episode: Episode | Together | None = None
            try:
                kind = Together if int(line) % SIDE_BY_SIDE_EVERY == 0 else Episode
                episode = kind(Path(folder), int(line), figures)
                episode.run()
            except Exception:
                arch = episode.arch if episode else "no model"
                end, text = "wrong", f"{arch}: {traceback.format_exc()}"
        print(
            json.dumps({"end": end, "text": text or json.dumps(figures)}), file=answers, flush=True
        )


if __name__ == "__main__":
    main()
