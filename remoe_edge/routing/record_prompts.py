"""Run prompts through an engine that records, and say what the recording cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.errors import InputError


class RecordingEngine(Protocol):
    """What of an engine is used here."""

    @property
    def n_ctx(self) -> int:
        """Give the context in tokens."""
        ...

    @property
    def trace_failure(self) -> str | None:
        """Say what cut the recording short."""
        ...

    @property
    def recording_ns(self) -> int:
        """Count the time spent on recording."""
        ...

    def evaluate(
        self, tokens: Sequence[int], *, reset: bool = True, every: bool = False
    ) -> npt.NDArray[np.float32]:
        """Run tokens and give the logits after the last one."""
        ...

    def is_end(self, token: int) -> bool:
        """Say whether a token ends an answer."""
        ...


@dataclass
class Recorded:
    """Hold what was run so far; times in seconds."""

    prompts: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    decode_s: float = 0.0
    recording_s: float = 0.0  # the part of decode_s that went into recording
    cut: int = 0  # prompts longer than the context, read in parts

    @property
    def cost(self) -> float | None:
        """Give the share of decoding that went into recording, None where nothing was decoded."""
        return self.recording_s / self.decode_s if self.decode_s else None


def record(
    engine: RecordingEngine,
    prompts: Sequence[Sequence[int]],
    n_answer: int,
    progress: Callable[[Recorded], None] = lambda recorded: None,
    recorded: Recorded | None = None,
) -> Recorded:
    """Run token prompts, each from an empty context, and answer each greedily.

    n_answer: tokens decoded after a prompt, at most. A prompt that does not fit the context together
    with its answer is read in parts. Every layer routes every token. Ends early where the recording
    has failed; `recorded` is kept up to date, for who catches Ctrl-C.
    """
    done = recorded or Recorded()
    room = engine.n_ctx - n_answer
    if room < 1:
        raise InputError(f"answers of {n_answer} tokens fill the context of {engine.n_ctx}")
    for prompt in prompts:
        done.cut += len(prompt) > room
        for begin in range(0, len(prompt), room):
            part = prompt[begin : begin + room]
            token = int(engine.evaluate(part, every=True).argmax())
            done.prompt_tokens += len(part)
            progress(done)
            if engine.trace_failure:
                return done
        _answer(engine, token, n_answer, done, progress)
        done.prompts += 1
        if engine.trace_failure:
            return done
    return done


def _answer(
    engine: RecordingEngine,
    token: int,
    n_answer: int,
    done: Recorded,
    progress: Callable[[Recorded], None],
) -> None:
    for _ in range(n_answer):
        if engine.is_end(token):
            return
        recording = engine.recording_ns
        start = time.perf_counter()
        token = int(engine.evaluate([token], reset=False).argmax())
        done.decode_s += time.perf_counter() - start
        done.recording_s += (engine.recording_ns - recording) / 1e9
        done.answer_tokens += 1
        progress(done)
        if engine.trace_failure:
            return
