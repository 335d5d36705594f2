"""Have many clients ask, leave and make mistakes for minutes; compare every token, and watch memory.

    python tools/many_clients/soak.py [MODEL] --clients 64 --minutes 10 --parallel 8 --cache 40%

First each prompt's greedy answer is made alone, in this process. Then the clients ask the same of a
server that answers with slices of one conversation (`--together 1`), where every answer has to be the one
made alone, token by token as it comes. With `--groups` conversations are computed together: their later
tokens may round otherwise, and an answer counts as its own while no other prompt's answer is nearer to
it. Some clients hang up, some send what is refused. Ends with status 1 where a token was wrong, a place
was not given back or the server's memory grew by more than 2 % after the first fifth of the time.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from many_clients.record import row, tell
from many_clients.server import Refused, Server, serving, stream

MOST_GROWTH = 0.02
WARM_SHARE = 0.2
_PATH = "/v1/completions"
_WORDS = [
    "harbour", "lantern", "winter", "copper", "orchard", "signal", "granite", "meadow", "violin",
    "thunder", "paper", "ladder",
]  # fmt: skip


def prompts(n: int, seed: int) -> list[str]:
    """Make prompts that can be told apart, of very different lengths."""
    chosen = random.Random(seed)
    made = []
    for i in range(n):
        length = chosen.choice((3, 8, 20, 60, 150))
        words = " ".join(chosen.choice(_WORDS) for _ in range(length))
        made.append(f"Story {i} about {_WORDS[i % len(_WORDS)]}: {words}")
    return made


def answers_alone(
    model: Path | None,
    asked: Sequence[str],
    n_tokens: int,
    cache: str,
    ctx: int,
    threads: int | None,
) -> list[list[str]]:
    """Make each prompt's answer with an engine where nothing else is; give its tokens' texts."""
    from remoe_edge import Engine
    from remoe_edge.files.models import shipped_model

    found = []
    with Engine(model or shipped_model(), cache=cache, n_ctx=ctx, threads=threads) as engine:
        for each in asked:
            engine.reset()
            answer = engine.generate(each, temperature=0, max_tokens=n_tokens, logprobs=0)
            answer.read()
            assert answer.logprobs is not None
            found.append([token.text for token in answer.logprobs])
    return found


class Soak:
    """Keep the clients, and what became of their requests. compared: token by token with those alone."""

    def __init__(
        self, server: Server, asked: Sequence[str], alone: Sequence[list[str]], *, compared: bool
    ) -> None:
        self._server, self._asked, self._alone, self._compared = server, asked, alone, compared
        self._n_tokens = max(map(len, alone))
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def run(self, n_clients: int, seconds: float, most: int | None = None) -> list[int]:
        """Have the clients ask until the time is over, or `most` times each; give the server's memory,
        second by second."""
        end_s = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=[i, end_s, most], daemon=True)
            for i in range(n_clients)
        ]
        for each in threads:
            each.start()
        memory = [self._server.rss_bytes()]
        while any(each.is_alive() for each in threads):
            time.sleep(min(1.0, seconds / 20))
            memory.append(self._server.rss_bytes())
        return memory

    def _client(self, which: int, end_s: float, most: int | None) -> None:
        chosen = random.Random(which)
        n = 0
        while time.monotonic() < end_s and (most is None or n < most):
            n += 1
            how = chosen.choices(("reads", "leaves", "errs"), (8, 1, 1))[0]
            i = chosen.randrange(len(self._asked))
            try:
                outcome = self._err(chosen) if how == "errs" else self._ask(i, chosen, how)
            except Exception as error:
                outcome = "failed"
                self._say(f"prompt {i}: {type(error).__name__}: {error}")
            with self._lock:
                self.counts[outcome] += 1

    def _ask(self, i: int, chosen: random.Random, how: str) -> str:
        body = {
            "prompt": self._asked[i], "temperature": 0, "max_tokens": self._n_tokens, "logprobs": 0,
        }  # fmt: skip
        leaves_after = chosen.randrange(self._n_tokens) if how == "leaves" else None
        heard: list[str] = []
        for event in stream(self._server.port, _PATH, body):
            for choice in event["choices"]:
                heard += (choice.get("logprobs") or {}).get("tokens", ())
            if self._compared and heard != self._alone[i][: len(heard)]:
                self._say(f"prompt {i}: {heard!r}, alone {self._alone[i]!r}")
                return "wrong"
            if leaves_after is not None and len(heard) > leaves_after:
                return "left"
        nearest = max(range(len(self._alone)), key=lambda j: (same(heard, self._alone[j]), j == i))
        if self._compared:
            complete = heard == self._alone[i]
        else:
            complete = nearest == i or same(heard, self._alone[nearest]) == same(
                heard, self._alone[i]
            )
        if not complete:
            self._say(f"prompt {i}: {heard!r} is nearer to prompt {nearest}'s answer")
        return "answered" if complete else "wrong"

    def _err(self, chosen: random.Random) -> str:
        bad: dict[str, Any] = chosen.choice(
            ({"prompt": "x", "suffix": "y"}, {"prompt": 7}, {"prompt": "x", "max_tokens": -1}, {})
        )
        try:
            for _ in stream(self._server.port, _PATH, bad):
                pass
        except Refused as refused:
            if 400 <= refused.status < 500:
                return "refused"
            raise
        self._say(f"{bad} was answered")
        return "wrong"

    def _say(self, line: str) -> None:
        with self._lock:
            self.wrong.append(line)
        if len(self.wrong) <= 10:
            print(line, file=sys.stderr)

    def all_free(self) -> bool:
        """Wait until every place has been given back; return whether that came."""
        for _ in range(300):
            slots = self._server.get("/slots")
            if not slots["queued"] and not any(each["is_processing"] for each in slots["slots"]):
                return True
            time.sleep(0.1)
        return False


def same(a: Sequence[str], b: Sequence[str]) -> int:
    """Count the tokens that two answers begin with."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def growth(memory: Sequence[int]) -> float:
    """Give how much memory grew after the warm-up: the most of its last quarter against its first."""
    after = memory[int(len(memory) * WARM_SHARE) :] or memory
    quarter = max(1, len(after) // 4)
    return max(after[-quarter:]) / max(after[:quarter]) - 1


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=24, help="different prompts")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--cache", default="40%")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--groups", action="store_true", help="compute conversations together")
    asked = parser.parse_args()
    texts = prompts(asked.prompts, seed=1)
    alone = answers_alone(asked.model, texts, asked.tokens, asked.cache, asked.ctx, asked.threads)
    options = [
        "--cache", asked.cache, "--ctx", str(asked.ctx), "--parallel", str(asked.parallel),
        "--queue", str(asked.clients), "--together", "auto" if asked.groups else "1",
        *(["-t", str(asked.threads)] if asked.threads else []),
    ]  # fmt: skip
    with serving(asked.model, options) as server:
        soak = Soak(server, texts, alone, compared=not asked.groups)
        memory = soak.run(asked.clients, asked.minutes * 60)
        free = soak.all_free()
        alive = server.process.poll() is None
    rows = [
        row("requests", soak.counts.total()),
        *(row(f"requests {what}", n) for what, n in sorted(soak.counts.items())),
        row("wrong or failed", len(soak.wrong), bound="<= 0"),
        row("places not given back", int(not free), bound="<= 0"),
        row("deaths of the server", int(not alive), bound="<= 0"),
        row("memory at first", memory[0] / 2**20, "MiB"),
        row("memory at last", memory[-1] / 2**20, "MiB"),
        row("memory's growth after the warm-up", growth(memory), bound=f"<= {MOST_GROWTH}"),
    ]
    every = max(1, len(memory) // 600)
    kept = tell(asked, rows, asked.output, wrong=soak.wrong[:100], rss_bytes=memory[::every])
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
