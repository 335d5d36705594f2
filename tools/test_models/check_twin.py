#!/usr/bin/env python3
"""Measure how far a widened model is from its source: routing, logits, perplexity, greedy text.

    python tools/test_models/check_twin.py SMALL.gguf TWIN.gguf heldout/*.txt

Both run in llama.cpp over the same tokens, in runs of `--context` tokens from an empty cache. A
routing set is the top-k of one token in one layer; echo layers of the twin are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from remoe_edge.errors import InputError, RemoeError
from widen.compare import Comparison, Runner, Tokens, opened, real_layers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="check_twin.py", description="Compare twin and source.")
    parser.add_argument("source", type=Path, metavar="SMALL.gguf")
    parser.add_argument("twin", type=Path, metavar="TWIN.gguf")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT.txt")
    parser.add_argument("--context", type=int, default=256, help="tokens in one run (256)")
    parser.add_argument("--tokens", type=int, default=512, help="at most, of each text (512)")
    parser.add_argument("--greedy", type=int, default=32, help="greedy tokens per text (32)")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def runs_of(runner: Runner, path: Path, options: argparse.Namespace) -> list[Tokens]:
    """Cut one text into runs of tokens."""
    try:
        tokens = runner.tokenize(path.read_text(encoding="utf-8"))[: options.tokens]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    runs = [tokens[i : i + options.context] for i in range(0, len(tokens), options.context)]
    return [run for run in runs if len(run) > 1]


def compare(options: argparse.Namespace, console: Console) -> Comparison:
    """Run both models over every text."""
    total = Comparison()
    room = options.context + options.greedy
    with (
        opened(options.source, room, options.threads) as source,
        opened(options.twin, room, options.threads) as twin,
    ):
        layers = real_layers(twin.file)
        for path in track(options.texts, "comparing", console=console):
            runs = runs_of(source, path, options)
            for run in runs:
                total.add(run, source.read(run), twin.read(run), layers)
            if runs and options.greedy:
                prompt = runs[0][: options.context // 4]
                same = source.greedy(prompt, options.greedy) == twin.greedy(prompt, options.greedy)
                total.greedy_runs += 1
                total.greedy_equal += bool(same.all())
    if not total.predicted:
        raise InputError("the texts hold no run of two tokens or more")
    return total


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    options = parse(arguments)
    try:
        found = compare(options, Console(stderr=True))
    except RemoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    before, after = found.perplexities
    print(f"tokens              {found.tokens}")
    print(f"routing sets equal  {found.equal_sets} of {found.sets} ({found.routing_equal:.4%})")
    print(f"most likely equal   {found.equal_argmax} of {found.tokens}")
    print(f"perplexity          {before:.4f} source, {after:.4f} twin ({after / before - 1:+.4%})")
    print(f"largest logit error {found.max_logit_error:.4g}")
    print(f"greedy text equal   {found.greedy_equal} of {found.greedy_runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
