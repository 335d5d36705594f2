"""Answer prompts token by token and write down what each token cost. Runs in an arm's own process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.counters import PER_TOKEN, core_key

# The engine's counts that are told token by token.
_CACHE = tuple(core_key(name) for name in PER_TOKEN)


class Model(Protocol):
    """What both kinds of arm do: stock llama.cpp, and the engine."""

    def steps(self, prompt: Sequence[int], text: Sequence[int], n_tokens: int) -> Iterator[int]:
        """Compute a prompt and `n_tokens` further tokens; yield what it chooses after each, greedily.

        text: those tokens; where it has ended, the model's own choices.
        """
        ...

    def counts(self) -> dict[str, int] | None:
        """Give the cache's counts so far; None without a cache."""
        ...

    def counts_by_layer(self) -> dict[str, list[int]] | None:
        """Give hits and misses of each layer so far; None without a cache."""
        ...

    def about(self) -> dict[str, Any]:
        """Tell how the model is run."""
        ...

    def remote(self) -> dict[str, Any] | None:
        """Tell what workers on other machines did; None without any."""
        ...

    def drafts(self) -> dict[str, int] | None:
        """Count the tokens that were guessed, and how many of them rightly; None where none may be."""
        ...


def one_by_one(
    evaluate: Callable[..., npt.NDArray[np.float32]],
    prompt: Sequence[int],
    text: Sequence[int],
    n_tokens: int,
) -> Iterator[int]:
    """Do what `Model.steps` says by `evaluate`, which runs tokens and gives the logits after the last."""
    chosen = int(evaluate(prompt, reset=True).argmax())
    yield chosen
    for i in range(n_tokens):
        token = text[i] if i < len(text) else chosen
        chosen = int(evaluate([token], reset=False).argmax())
        yield chosen


class Ledger:
    """Read all counts at once, and tell what was added since they were last read."""

    def __init__(self, model: Model, usage_file: Path | None) -> None:
        self._model = model
        self._usage = usage_file
        self._last = self._read()

    def _read(self) -> dict[str, Any]:
        # What storage moved for this process by the kernel's account, page faults included: the one
        # figure that stock has too.
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        counts: dict[str, Any] = {
            "storage_bytes": int(fields["read_bytes"]),
            "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        }
        cache = self._model.counts()
        if cache is not None:
            for name in _CACHE:
                counts[name] = cache[name]
            layers = self._model.counts_by_layer() or {}
            counts["layer_hits"] = np.array(layers.get("hits", []), np.int64)
            counts["layer_misses"] = np.array(layers.get("misses", []), np.int64)
        return counts

    def since(self) -> dict[str, Any]:
        """Return what came since the last call, times in ms, and the memory in use now."""
        now, last = self._read(), self._last
        self._last = now
        spent: dict[str, Any] = {}
        for name, value in now.items():
            added = value - last[name]
            if name.endswith("_ns"):
                spent[name.removesuffix("_ns") + "_ms"] = round(int(added) / 1e6, 3)
            else:
                spent[name] = added.tolist() if isinstance(added, np.ndarray) else int(added)
        spent["memory_bytes"] = self._memory_bytes()
        return spent

    def _memory_bytes(self) -> int:
        if self._usage is not None:
            return int(self._usage.read_text())
        resident = Path("/proc/self/statm").read_text().split()[1]
        return int(resident) * os.sysconf("SC_PAGE_SIZE")


def answer(
    model: Model,
    prompt: Sequence[int],
    forced: Sequence[int] | None,
    n_tokens: int,
    usage_file: Path | None,
) -> Iterator[dict[str, Any]]:
    """Yield the prefill's figures, then each token's; both name the token that the model chooses next
    and when it was known (`at`, of time.perf_counter()).

    Greedy, without regard to end-of-text, so that every arm does the same work. forced: what is fed
    instead of the model's own choices, which are named all the same.
    """
    ledger = Ledger(model, usage_file)
    steps = model.steps(prompt, forced or [], n_tokens)
    for name in ("ttft_ms", *["token_ms"] * n_tokens):
        clock = time.perf_counter()
        chosen = next(steps)
        now = time.perf_counter()
        ms = round((now - clock) * 1000, 3)
        yield {name: ms, "chosen": chosen, "at": now, **ledger.since()}
