"""Measure what the server costs one client: its time per token against `chat`'s, and a next turn's start.

    python tools/many_clients/latency.py [MODEL] --cache 40% --rounds 5

Both sides answer the same prompts with the same greedy tokens, in turn, each side in a process of its own
that stays, with the settings that `chat` has. An answer's TPOT is the time from its first token to its
last where they are heard, by the tokens after the first: in the engine's caller, and in the client behind
HTTP. The server hands over together what comes within 20 ms, so that single gaps between short tokens say
nothing. The next turn: a conversation of about 2000 tokens is asked once, and then goes on; the ratio is
that of the two times to the first token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from many_clients.record import row, tell
from many_clients.server import Server, serving, stream

_TEXT = Path(__file__).resolve().parents[2] / "models" / "heldout" / "prose.txt"
_ALONE = "--alone"


def alone(asked: argparse.Namespace) -> None:
    """Answer what stdin asks, a line of JSON each, as `chat` would; write the TPOT in ms."""
    from remoe_edge import Engine
    from remoe_edge.files.models import shipped_model

    settings = {"cache": asked.cache, "n_ctx": asked.ctx, "threads": asked.threads}
    with Engine(asked.model or shipped_model(), publish=True, **settings) as engine:
        print("ready", flush=True)
        for line in sys.stdin:
            answer = engine.generate(json.loads(line), temperature=0, max_tokens=asked.tokens)
            print(tpot_ms([time.perf_counter() for _ in answer]), flush=True)


def tpot_ms(heard: Sequence[float]) -> float:
    """Give the time per token after the first, in ms."""
    return 1000 * (heard[-1] - heard[0]) / (len(heard) - 1)


def alone_ms(pipes: tuple[IO[str], IO[str]], prompt: str) -> float:
    """Have the other process answer; give the TPOT in ms."""
    pipes[0].write(json.dumps(prompt) + "\n")
    pipes[0].flush()
    return float(pipes[1].readline())


def served_ms(server: Server, prompt: str, n_tokens: int) -> float:
    """Ask the server; give the TPOT as the client hears it, in ms."""
    heard = []
    body = {"prompt": prompt, "temperature": 0, "max_tokens": n_tokens}
    for event in stream(server.port, "/v1/completions", body):
        if any(choice.get("text") for choice in event["choices"]):
            heard.append(time.perf_counter())
    return tpot_ms(heard)


def first_token_s(server: Server, messages: list[dict[str, str]]) -> tuple[float, str, int]:
    """Ask for an answer; give the time to its first piece, the answer, and the prompt's tokens."""
    begun = time.perf_counter()
    first, text, n_prompt = 0.0, "", 0
    body = {
        "messages": messages, "temperature": 0, "max_tokens": 32,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    for event in stream(server.port, "/v1/chat/completions", body):
        n_prompt = (event.get("usage") or {}).get("prompt_tokens", n_prompt)
        for choice in event["choices"]:
            piece = choice["delta"].get("content") or ""
            said = piece or choice["delta"].get("reasoning_content")
            first = first or (time.perf_counter() - begun if said else 0.0)
            text += piece
    return first or time.perf_counter() - begun, text, n_prompt


def next_turn(server: Server, n_characters: int) -> dict[str, float]:
    """Give both times to the first token, in seconds, and their ratio."""
    text = _TEXT.read_text(encoding="utf-8")[:n_characters]
    messages = [{"role": "user", "content": text}]
    first_s, answer, n_prompt = first_token_s(server, messages)
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And what happened then?"},
    ]
    next_s = first_token_s(server, messages)[0]
    ratio = next_s / first_s
    return {"first_s": first_s, "next_s": next_s, "ratio": ratio, "first_tokens": n_prompt}


def main() -> int:
    """Measure, and say what came of it; status 1 where a bound was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--cache", default="40%")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--characters", type=int, default=8000, help="of the long conversation")
    parser.add_argument("--parallel", default="auto")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument(_ALONE, action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        alone(asked)
        return 0
    threads = ["-t", str(asked.threads)] if asked.threads else []
    options = [
        "--cache",
        asked.cache,
        "--ctx",
        str(asked.ctx),
        "--parallel",
        asked.parallel,
        *threads,
    ]
    command = [sys.executable, __file__, *sys.argv[1:], _ALONE]
    text = _TEXT.read_text(encoding="utf-8")
    found: dict[str, list[float]] = {"alone": [], "served": []}
    pipe = subprocess.PIPE
    with (
        serving(asked.model, options) as server,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        for n in range(asked.rounds + 1):
            prompt = text[500 * n : 500 * n + 300]
            asks = {
                "alone": lambda prompt=prompt: alone_ms((other.stdin, other.stdout), prompt),
                "served": lambda prompt=prompt: served_ms(server, prompt, asked.tokens),
            }
            answers = {side: asks[side]() for side in sorted(asks, reverse=n % 2 == 1)}
            for side, ms in answers.items() if n else ():  # the first round warms up
                found[side].append(ms)
        turn = next_turn(server, asked.characters)
        other.stdin.close()
    p50 = {side: statistics.median(each) for side, each in found.items()}
    ratios = [served / own for own, served in zip(*found.values(), strict=True)]
    rows = [
        row("TPOT p50, alone", p50["alone"], "ms"),
        row("TPOT p50, served", p50["served"], "ms"),
        row("TPOT p50, served to alone", p50["served"] / p50["alone"], bound="<= 1.03"),
        row("TPOT, served to alone by prompt, p50", statistics.median(ratios)),
        row("prompt of the first turn", turn["first_tokens"], "tokens"),
        row("TTFT of the first turn", turn["first_s"], "s"),
        row("TTFT of the next turn", turn["next_s"], "s"),
        row("TTFT, next to first", turn["ratio"], bound="<= 0.15"),
    ]
    return 0 if tell(asked, rows, asked.output, tpot_ms=found) else 1


if __name__ == "__main__":
    sys.exit(main())
