"""Measure what drafts gain on texts that exist: time, bytes and guesses of every token.

    python tools/draft_gain.py MODEL --text code.txt dialogue.txt docs.txt --cache 25% 40% 70% \\
        --routers off tuned.routers.gguf -o gain.json

What the record holds is not measured again. So a long run may be cut into several with fewer texts,
caches or routers each, and the same file. Each text is kept as it is done, beside the record until all
are: the same command goes on.

A text is read token by token: what comes next in it counts as what the model says. So right guesses are
as frequent as the text repeats itself, and no answer runs in circles, as those of small models do. The
prompt is computed anew before every row, which fills the cache alike, and rows of one text take turns.
Documents shorter than a row are joined to the next ones of their file.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pieces import Parts, Pieces, in_pieces
from remoe_edge import Engine, EngineSettings
from remoe_edge.bench import drafted
from remoe_edge.cli.results import write_json
from remoe_edge.engine.draft_governor import Governor
from remoe_edge.engine.stats import AnswerStats


class Never(Governor):
    """Have no token guessed: the steps are those of plain decoding."""

    def n_guesses(self) -> int:
        """Give 0."""
        return 0


GOVERNORS = {"off": Never, "auto": Governor, "on": lambda: Governor(always=True)}


def main() -> None:
    """Print a line for each text, cache and set of routers; write all rows as JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--text", type=Path, nargs="+", required=True)
    p.add_argument("--cache", nargs="+", default=["25%", "40%", "70%"])
    p.add_argument("--routers", nargs="+", default=["off"], help="off, or an overlay's file")
    p.add_argument("--drafts", nargs="+", default=["off", "auto"], choices=GOVERNORS)
    p.add_argument("--prompt", type=int, default=192, help="tokens before the first that is read")
    p.add_argument("--warm", type=int, default=16, help="tokens that are read and not counted")
    p.add_argument("--tokens", type=int, default=80)
    p.add_argument("--windows", type=int, default=2, help="of each text")
    p.add_argument("--threads", type=int, default=0, help="0: the engine's choice")
    p.add_argument("-o", "--out", type=Path)
    args = p.parse_args()
    about = {name: vars(args)[name] for name in ("prompt", "warm", "tokens", "windows", "threads")}
    about |= {"model": args.model.name, "drafts": args.drafts}
    with in_pieces(args.out, about, parts_of=parts_of) as pieces:
        for routers, cache in itertools.product(args.routers, args.cache):
            measure_texts(pieces, args, cache, routers)
        rows = [row for each in pieces.found.values() for row in each]
        if args.out is not None:
            write_json({"settings": about, "rows": rows}, args.out)


def measure_texts(pieces: Pieces, args: argparse.Namespace, cache: str, routers: str) -> None:
    """Measure the texts that are missing in one engine; print a line for each text."""
    parts = {
        path: {"routers": Path(routers).name, "cache": cache, "text": path.name}
        for path in args.text
    }
    if missing := [path for path in args.text if named(parts[path]) not in pieces.found]:
        with Engine(args.model, settings_of(args, cache, routers)) as engine:
            for path in missing:
                pieces.get(
                    named(parts[path]),
                    lambda path=path: [parts[path] | row for row in measured(engine, path, args)],
                )
    for part in parts.values():
        print(line(pieces.found[named(part)]), flush=True)


def settings_of(args: argparse.Namespace, cache: str, routers: str) -> EngineSettings:
    """Give the settings of an engine that reads windows."""
    return EngineSettings(
        cache=cache, n_ctx=args.prompt + args.warm + args.tokens + 8,
        routers=None if routers == "off" else routers,
        **({"threads": args.threads} if args.threads else {}),
    )  # fmt: skip


def parts_of(record: dict[str, Any]) -> Parts:
    """Cut a record into what was measured of each text with a cache and routers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        found.setdefault(named(row), []).append(row)
    return record["settings"], found


def named(row: dict[str, Any]) -> str:
    """Name what belongs together."""
    return f"{row['text']}, routers {row['routers']}, cache {row['cache']}"


def measured(engine: Engine, path: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every kind of drafting on every window of a text."""
    length = args.prompt + args.warm + args.tokens + 1
    for number, tokens in enumerate(windows(engine, path, length, args.windows)):
        for draft in args.drafts:
            yield {"window": number, "draft": draft, **read(engine, tokens, draft, args)}


def windows(engine: Engine, path: Path, length: int, n: int) -> Iterator[list[int]]:
    """Cut a text into pieces of `length` tokens, each beginning with a document."""
    tokens: list[int] = []
    for document in path.read_text("utf-8").split("<|endoftext|>"):
        tokens += engine.tokenize(document.strip("\n"))
        if len(tokens) >= length:
            yield tokens[:length]
            tokens = []
            n -= 1
        if not n:
            return
    sys.exit(f"{path} has too few tokens: {n} windows of {length} are missing")


def read(engine: Engine, tokens: list[int], draft: str, args: argparse.Namespace) -> dict[str, Any]:
    """Read a window; give what its tokens took on average, and what became of the guesses."""
    stats = AnswerStats()
    prompt, rest = tokens[: args.prompt], tokens[args.prompt :]
    steps = drafted.read(engine, prompt, rest, len(rest) - 1, stats, [GOVERNORS[draft]()])
    n_warm = 1 + args.warm
    for i, _ in enumerate(steps):
        if i + 1 == n_warm:
            begun, before = time.perf_counter(), engine.counts()
            guessed, right = stats.guessed, stats.guessed_right
    seconds, after = time.perf_counter() - begun, engine.counts()
    spent = {name: after[name] - before[name] for name in ("hits", "misses", "bytes_read")}
    n = len(rest) - n_warm
    return {
        "tokens": n,
        "ms": round(1000 * seconds / n, 3),
        "mib": round(spent["bytes_read"] / n / 2**20, 3),
        "hits": spent["hits"],
        "misses": spent["misses"],
        "guessed": stats.guessed - guessed,
        "right": stats.guessed_right - right,
    }


def line(rows: list[dict[str, Any]]) -> str:
    """Write the rows of a text as one line."""
    first = rows[0]
    parts = [f"{first['routers']:24} {first['cache']:>8} {first['text']:14}"]
    plain = mean(rows, rows[0]["draft"], "ms")
    for draft in dict.fromkeys(row["draft"] for row in rows):
        ms, mib = mean(rows, draft, "ms"), mean(rows, draft, "mib")
        right, guessed = mean(rows, draft, "right"), mean(rows, draft, "guessed")
        parts.append(f"{draft}: {ms:6.1f} ms ({100 * (plain / ms - 1):+5.1f} %) {mib:6.1f} MiB")
        if guessed:
            parts[-1] += f", {right:.0f} of {guessed:.0f} guesses right"
    return "   ".join(parts)


def mean(rows: list[dict[str, Any]], draft: str, name: str) -> float:
    """Give the mean of a figure over windows."""
    return statistics.fmean(row[name] for row in rows if row["draft"] == draft)


if __name__ == "__main__":
    main()
