"""What tests of engines share: a prompt, every public name, and somebody who looks on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from remoe_edge import Engine
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats

PROMPT = [11, 48, 85, 122, 159, 196, 38]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


class Onlooker:
    """An observer that does something in the middle of things."""

    def __init__(self, do: Callable[[], None] = lambda: None) -> None:
        self.do = do
        self.heard: list[str] = []

    def on_load(self, facts: Any) -> None:
        self.heard.append("load")

    def on_begin(self, n_prompt: int) -> None:
        self.heard.append("begin")

    def on_step(self, step: Step) -> None:
        self.heard.append("step")
        self.do()

    def on_answer(self, answer: AnswerStats) -> None:
        self.heard.append(f"answer {answer.stop}")

    def on_close(self) -> None:
        self.heard.append("close")


# Plain facts hold after `close` and in a forked child; calls are refused there.
FACTS = {
    "path", "settings", "notes", "threads", "n_ctx", "parallel", "load_ms", "budget", "streamed",
    "answer",
}  # fmt: skip
CALLS: dict[str, Callable[[Engine], Any]] = {
    "tokenize": lambda e: e.tokenize("x"),
    "evaluate": lambda e: e.evaluate(PROMPT),
    "batch": lambda e: e.batch(),
    "embed": lambda e: e.embed("x"),
    "longest_embedded": lambda e: e.longest_embedded,
    "generate": lambda e: e.generate(PROMPT),
    "chat": lambda e: e.chat([{"role": "user", "content": "x"}]),
    "render": lambda e: e.render([{"role": "user", "content": "x"}]),
    "reset": lambda e: e.reset(),
    "stats": lambda e: e.stats(),
    "counts": lambda e: e.counts(),
    "is_end": lambda e: e.is_end(1),
    "misses_by_layer": lambda e: e.misses_by_layer(),
    "add_observer": lambda e: e.add_observer(Onlooker()),
    "llama": lambda e: e.llama,
    "native": lambda e: e.native,
    "chat_template": lambda e: e.chat_template,
    "trace_failure": lambda e: e.trace_failure,
    "router_probabilities": lambda e: e.router_probabilities,
    "recording_ns": lambda e: e.recording_ns,
}
HARMLESS = {
    "close": lambda e: e.close(),
    "notes_since": lambda e: e.notes_since(0),
    "remove_observer": lambda e: e.remove_observer(Onlooker()),
}


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; it must end by itself, and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done
