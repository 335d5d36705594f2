"""The engine, as an arm. Runs in the arm's own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.bench.drafted import read
from remoe_edge.bench.measure import one_by_one
from remoe_edge.engine.engine import Engine
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.engine.stats import AnswerStats


class StreamedArm:
    """Hold an engine, and read its counts. Raises RemoeError as `Engine` does.

    profile, past_prompts: files that the engine is given; settings: those of `EngineSettings`.
    """

    def __init__(
        self,
        path: str,
        *,
        profile: str | None = None,
        past_prompts: str | None = None,
        **settings: Any,
    ) -> None:
        from remoe_edge.plan.choose import choose_cache
        from remoe_edge.predict.past_prompts import PastPromptsFile
        from remoe_edge.profile.kept_profile import ProfileFile

        asked = EngineSettings(**settings)
        routers = None if asked.routers is None else Path(asked.routers)
        self._engine = Engine(
            path,
            asked,
            profile=None if profile is None else ProfileFile(Path(profile)),
            past_prompts=(
                None if past_prompts is None else PastPromptsFile(Path(past_prompts), routers)
            ),
            planner=choose_cache,
        )
        self._guesses = AnswerStats()

    def evaluate(self, tokens: Sequence[int], *, reset: bool) -> npt.NDArray[np.float32]:
        """Run tokens and give the logits after the last one."""
        return self._engine.evaluate(tokens, reset=reset)

    def steps(self, prompt: Sequence[int], text: Sequence[int], n_tokens: int) -> Iterator[int]:
        """Compute token by token, or several in a step where tokens are guessed; see `Model.steps`."""
        if self._engine.settings.draft == "off":
            return one_by_one(self.evaluate, prompt, text, n_tokens)
        return read(self._engine, prompt, text, n_tokens, self._guesses)

    def counts(self) -> dict[str, int] | None:
        """Give the cache's counts; None for a dense model."""
        return self._engine.counts() or None

    def counts_by_layer(self) -> dict[str, list[int]] | None:
        """Give each layer's hits and misses; None for a dense model."""
        model = self._engine.native
        return None if model is None else model.counts_by_layer()

    def remote(self) -> dict[str, Any] | None:
        """Tell what peers did; None without any."""
        return self._engine.stats().to_dict().get("remote")

    def drafts(self) -> dict[str, int] | None:
        """Count the tokens that were guessed, and those that the text had; None where none may be."""
        if self._engine.settings.draft == "off":
            return None
        return {"guessed": self._guesses.guessed, "right": self._guesses.guessed_right}

    def about(self) -> dict[str, Any]:
        """Tell how the engine runs the model."""
        stats = self._engine.stats().to_dict()
        cache = stats["cache"] or {}
        kept = (
            "budget_bytes",
            "slots",
            "policy",
            "why",
            "locked",
            "huge_pages",
            "repacked",
            "expert_bytes",
        )
        return {
            "streamed": stats["streamed"],
            "cache": {name: cache[name] for name in kept if name in cache},
            "io": stats["io"],
            "wait_policy": stats["wait_policy"],
            "notes": stats["notes"],
        }
