#!/usr/bin/env python3
"""Judge the prediction of experts from similar past prompts, on a model's own routing.

    python tools/similar_prompts/evaluate_sps.py MODEL.gguf models/heldout/*.txt -o found.json

Every text is a domain, cut into prompts; the first part of each text are the past prompts, the last
part is judged (so that they share few documents). Routing is overheard from stock llama.cpp. Reports
the Jensen-Shannon divergence to the true activations (bits, lower is better) against the mean
activation of all past prompts ("global"), of those of the same domain, and even use; then the
misses of the prompt and of the tokens after it when the cache begins with what was predicted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from remoe_edge.cli.results import write_json
from remoe_edge.errors import InputError, RemoeError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.native import _core
from remoe_edge.predict.embeddings import Floats, TokenEmbeddings
from remoe_edge.predict.past_prompts import bonus
from remoe_edge.predict.predictor import ALPHA, SimilarPrompts
from remoe_edge.predict.similarity import summary
from remoe_edge.predict.store import PromptStore, activation

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "test_models"))
from similar_prompts.divergence import jensen_shannon
from similar_prompts.replayed_starts import replay_start
from similar_prompts.tree import BETA, TreePrompts
from typed_command import typed_command
from widen.compare import opened


@dataclass(frozen=True)
class Prompt:
    """One prompt, the tokens after it, and where both were routed."""

    domain: str
    tokens: list[int]
    prompt: npt.NDArray[np.int32]  # [layer, token, k]
    answer: npt.NDArray[np.int32]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="evaluate_sps.py", description="Judge the search of similar prompts."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT.txt")
    parser.add_argument("--prompt", type=int, default=25, help="tokens of a prompt (25)")
    parser.add_argument("--answer", type=int, default=32, help="tokens after it (32)")
    parser.add_argument("--past", type=int, default=120, help="past prompts of a text (120)")
    parser.add_argument("--judged", type=int, default=30, help="judged prompts of a text (30)")
    parser.add_argument("--cache", default="10,25,50", help="percent of the experts")
    parser.add_argument("--sharpness", type=float, nargs="*", default=[10.0, 50.0])
    parser.add_argument("--alpha", type=int, default=ALPHA)
    parser.add_argument("--beta", type=int, default=BETA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args(arguments)


def overhear(
    options: argparse.Namespace, console: Console
) -> tuple[list[Prompt], list[Prompt], int]:
    """Cut the texts into past and judged prompts, route them, and say how many experts a layer has."""
    past: list[Prompt] = []
    judged: list[Prompt] = []
    length = options.prompt + options.answer
    with opened(options.model, length, options.threads) as runner:
        n_experts = int(runner.file.experts)
        for path in track(options.texts, "routing", console=console):
            tokens = runner.tokenize(path.read_text(encoding="utf-8"))
            pieces = [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
            if len(pieces) < 8:
                raise InputError(
                    f"{path} has {len(tokens)} tokens, too few for prompts of {length}"
                )
            n_judged = min(options.judged, len(pieces) // 4)
            # One piece lies between the two parts.
            for kept, part in (
                (past, _spread(pieces[: len(pieces) * 3 // 4 - 1], options.past)),
                (judged, _spread(pieces[len(pieces) * 3 // 4 :], n_judged)),
            ):
                for piece in part:
                    routed = runner.read(piece).routing
                    first = options.prompt
                    kept.append(
                        Prompt(
                            path.stem, piece[:first].tolist(), routed[:, :first], routed[:, first:]
                        )
                    )
    return past, judged, n_experts


def _spread(pieces: list[Any], n: int) -> list[Any]:
    """Take n pieces, spread evenly."""
    if len(pieces) <= n:
        return pieces
    return [pieces[int(i)] for i in np.linspace(0, len(pieces) - 1, n)]


def mean_activation(store: PromptStore) -> Floats:
    """Give the mean activation of all its prompts, [layers, experts]: their global frequency."""
    return np.asarray(np.mean(store.activations, axis=0, dtype=np.float64), np.float32)


Predictors = dict[str, Callable[[Prompt], Floats]]


def predictors(
    options: argparse.Namespace, past: list[Prompt], n_experts: int
) -> tuple[Predictors, TreePrompts]:
    """Make every way of predicting that is compared."""
    shape = (past[0].prompt.shape[0], n_experts)
    embeddings = TokenEmbeddings(options.model)
    store = PromptStore(*shape)
    domains: dict[str, PromptStore] = {}
    for each in past:
        shares = activation(np.concatenate([each.prompt, each.answer], 1), n_experts)
        past_summary = summary(each.tokens, embeddings)
        store.add(past_summary, shares)
        domains.setdefault(each.domain, PromptStore(*shape)).add(past_summary, shares)

    def similar(sharpness: float) -> TreePrompts:
        return TreePrompts(
            store, embeddings, alpha=options.alpha, beta=options.beta, sharpness=sharpness
        )

    plain = similar(1.0)
    exhaustive = SimilarPrompts(store, embeddings, alpha=options.alpha)
    frequency = mean_activation(store)
    even = np.full(shape, 1 / n_experts, np.float32)
    found: Predictors = {
        "uniform": lambda each: even,
        "global": lambda each: frequency,
        "domain": lambda each: mean_activation(domains[each.domain]),
        "sps": lambda each: plain.predict(each.tokens),
        "sps, all searched": lambda each: exhaustive.predict(each.tokens),
        "sps and global, half each": lambda each: (plain.predict(each.tokens) + frequency) / 2,
    }
    for sharpness in options.sharpness:
        sharp = similar(sharpness)
        found[f"sps, sharpness {sharpness:g}"] = lambda each, s=sharp: s.predict(each.tokens)  # type: ignore[misc]
    return found, plain


def judge(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare all predictors on the judged prompts."""
    past, judged, n_experts = overhear(options, console)
    ways, plain = predictors(options, past, n_experts)
    total = past[0].prompt.shape[0] * n_experts
    caches = {text: round(float(text) / 100 * total) for text in options.cache.split(",")}
    # A second opinion besides the divergence: what a cache misses that is filled by it before the
    # prompt (load), that lets go by it while the prompt runs (keep), and whose policy expects it.
    filled = ["uniform", "global", "domain", "sps", "sps, all searched", "truth"]
    divergences: dict[str, dict[str, list[float]]] = {}
    misses: dict[str, dict[str, list[tuple[int, int]]]] = {text: {} for text in caches}
    for each in track(judged, "judging", console=console):
        truth = activation(np.concatenate([each.prompt, each.answer], 1), n_experts)
        scores = {name: way(each) for name, way in ways.items()}
        for name, predicted in scores.items():
            rows = divergences.setdefault(name, {})
            rows.setdefault(each.domain, []).append(jensen_shannon(predicted, truth))
        for text, n_slots in caches.items():
            for name in ("nothing", *filled):
                by = truth if name == "truth" else scores.get(name)
                for how in ("load", "keep", "both"):
                    got = replay_start(
                        each.prompt, each.answer, n_experts, n_slots,
                        load=by if how != "keep" else None, keep=by if how != "load" else None,
                    )  # fmt: skip
                    label = name if by is None else f"{how} by {name}"
                    misses[text].setdefault(label, []).append((got.prompt, sum(got.decode)))
                    if by is None:
                        break
                got = replay_start(
                    each.prompt, each.answer, n_experts, n_slots, policy="reuse-biased",
                    expect=None if by is None else bonus(by),
                )  # fmt: skip
                label = "reuse-biased" if by is None else f"reuse-biased, expecting {name}"
                misses[text].setdefault(label, []).append((got.prompt, sum(got.decode)))
    domains = sorted({each.domain for each in judged})
    return {
        "command": typed_command(),
        "model": options.model.name,
        "fingerprint": fingerprint(_core.ModelFile.open(str(options.model))),
        "n_past": len(past),
        "n_judged": len(judged),
        "prompt_tokens": options.prompt,
        "answer_tokens": options.answer,
        "alpha": options.alpha,
        "beta": options.beta,
        "leaves": len(plain.tree.leaves()),
        "jensen_shannon_bits": {
            name: {
                **{domain: round(float(np.mean(rows[domain])), 5) for domain in domains},
                "mean": round(float(np.mean([np.mean(rows[d]) for d in domains])), 5),
            }
            for name, rows in divergences.items()
        },
        "better_than_global": {
            name: round(_share_better(rows, divergences["global"], domains), 4)
            for name, rows in divergences.items()
            if name != "global"
        },
        "misses": {
            text: {
                name: {
                    "prompt": round(float(np.mean([p for p, _ in rows])), 3),
                    "answer": round(float(np.mean([a for _, a in rows])), 3),
                }
                for name, rows in by_name.items()
            }
            for text, by_name in misses.items()
        },
    }


def _share_better(
    rows: dict[str, list[float]], than: dict[str, list[float]], domains: list[str]
) -> float:
    """Say in which share of the prompts the first diverges less."""
    wins = [a < b for d in domains for a, b in zip(rows[d], than[d], strict=True)]
    return float(np.mean(wins))


def show(found: dict[str, Any]) -> None:
    """Print both tables."""
    print(f"{found['n_past']} past prompts in {found['leaves']} leaves, {found['n_judged']} judged")
    print("Jensen-Shannon divergence, bits")
    names = list(found["jensen_shannon_bits"])
    domains = list(found["jensen_shannon_bits"][names[0]])
    print(f"{'':28}" + "".join(f"{domain:>11}" for domain in domains) + "  beats global")
    for name in names:
        row = found["jensen_shannon_bits"][name]
        better = found["better_than_global"].get(name)
        share = "" if better is None else f"{better:13.0%}"
        print(f"{name:28}" + "".join(f"{row[domain]:11.4f}" for domain in domains) + share)
    print("misses: of the prompt / of the tokens after it")
    caches = list(found["misses"])
    print(f"{'cache':28}" + "".join(f"{text + ' %':>20}" for text in caches))
    for name in found["misses"][caches[0]]:
        rows = [found["misses"][text][name] for text in caches]
        print(f"{name:28}" + "".join(f"{r['prompt']:10.1f} / {r['answer']:7.1f}" for r in rows))


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    options = parse(arguments)
    try:
        found = judge(options, Console(stderr=True))
    except (RemoeError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(found)
    if options.out:
        write_json(found, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
