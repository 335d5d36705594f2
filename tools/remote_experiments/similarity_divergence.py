#!/usr/bin/env python3
"""Do similar prompts use similar experts? Every pair: soft cosine similarity against divergence.

    python tools/remote_experiments/similarity_divergence.py MODEL.gguf models/heldout/*.txt -o found.json

Prompts are cut from the texts and routed by the model itself, as tools/similar_prompts does. Reports the
rank correlation (Spearman's) of similarity and Jensen-Shannon divergence over all pairs, over pairs of
one text and of two, with intervals from prompts drawn again, and keeps a scatter of pairs. `--plot
FILE.svg` draws it (extra [plot]).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "test_models"))
from remoe_edge.errors import RemoeError
from remoe_edge.predict.embeddings import TokenEmbeddings
from remoe_edge.predict.similarity import soft_cosine, summary
from remoe_edge.predict.store import activation
from remote_experiments.setting import keep
from similar_prompts.divergence import jensen_shannon
from similar_prompts.evaluate_sps import Prompt, overhear

Floats = npt.NDArray[np.float64]
DRAWS = 500


def ranks(values: Floats) -> Floats:
    """Rank values; equal ones share the mean of their ranks."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(((ends - counts + 1 + ends) / 2)[at], np.float64)


def spearman(a: Floats, b: Floats) -> float:
    """Give the rank correlation; NaN where one of them does not vary."""
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def pairs(prompts: list[Prompt], model: Path, n_experts: int) -> tuple[Floats, Floats]:
    """Give similarity and divergence of every prompt with every other, [n, n]."""
    embeddings = TokenEmbeddings(model)
    summaries = np.stack([summary(each.tokens, embeddings) for each in prompts])
    used = [activation(np.concatenate([e.prompt, e.answer], 1), n_experts) for e in prompts]
    n = len(prompts)
    apart = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            apart[i, j] = apart[j, i] = jensen_shannon(used[i], used[j])
    return np.asarray(soft_cosine(summaries, summaries), np.float64), apart


def correlations(
    alike: Floats, apart: Floats, domains: list[str], seed: int, draws: int = DRAWS
) -> dict[str, Any]:
    """Correlate over all pairs, within texts and across them; intervals draw prompts again."""
    same = np.equal.outer(domains, domains)
    rng = np.random.default_rng(seed)
    found = {}
    for name, wanted in (("all", np.ones_like(same)), ("one text", same), ("two texts", ~same)):

        def over(chosen: npt.NDArray[np.intp], wanted: npt.NDArray[np.bool_] = wanted) -> float:
            grid = np.ix_(chosen, chosen)
            # A prompt drawn twice is no pair with itself.
            keep_pair = wanted[grid] & np.triu(np.not_equal.outer(chosen, chosen), 1)
            return spearman(alike[grid][keep_pair], apart[grid][keep_pair])

        n = len(domains)
        drawn = [over(rng.integers(0, n, n)) for _ in range(draws)]
        value = over(np.arange(n))
        if np.isnan(value):
            continue
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        found[name] = {
            "spearman": value, "low": float(low), "high": float(high),
            "pairs": int(np.triu(wanted, 1).sum()),
        }  # fmt: skip
    return found


def scatter(alike: Floats, apart: Floats, n: int, seed: int) -> list[list[float]]:
    """Draw pairs for a plot."""
    rows, columns = np.triu_indices(len(alike), 1)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [
        [float(alike[i, j]), float(apart[i, j])]
        for i, j in zip(rows[chosen], columns[chosen], strict=True)
    ]


def plot(points: list[list[float]], path: Path) -> None:
    """Draw the scatter."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.scatter(*zip(*points, strict=True), s=3, alpha=0.3)
    axes.set_xlabel("soft cosine similarity of two prompts")
    axes.set_ylabel("divergence of the experts they use, bits")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Route prompts and correlate."""
    parser = argparse.ArgumentParser(
        prog="similarity_divergence.py", description="Correlate pairs."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT.txt")
    parser.add_argument("--prompt", type=int, default=25)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=40, help="of each text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--points", type=int, default=2000, help="pairs kept for a scatter")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    options.past, options.judged = options.prompts, 1
    console = Console(stderr=True)
    try:
        prompts, _, n_experts = overhear(options, console)
    except RemoeError as error:
        console.print(str(error))
        return 1
    alike, apart = pairs(prompts, options.model, n_experts)
    found = correlations(alike, apart, [e.domain for e in prompts], options.seed, options.draws)
    for name, each in found.items():
        print(f"{name}: {each['spearman']:.3f} [{each['low']:.3f}, {each['high']:.3f}], "
              f"{each['pairs']} pairs")  # fmt: skip
    points = scatter(alike, apart, options.points, options.seed)
    if options.plot is not None:
        plot(points, options.plot)
    keep({"model": options.model.name, "prompts": len(prompts), "correlations": found,
          "scatter": [[round(x, 4), round(y, 4)] for x, y in points]}, options.out)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
