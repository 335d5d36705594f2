#!/usr/bin/env python3
"""Fit the weights that the reuse-biased policy has for a model without a profile.

    python tools/fit_defaults.py --model QWEN-CODE.npz QWEN-GENERAL.npz --model SMALL-*.trace

As `remoe-edge profile --no-links`, but over traces of several models, each model counting as much as
any other: what holds for one only is not for a default. The router's probabilities stay without
weight, since scores of different models' routers do not compare. Writes the numbers into
csrc/cache/reuse_columns.def, a row per column, and prints what they take back on the parts that are
judged. `--documentation` prints the table of docs/policies.md, of the program that is built.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from remoe_edge import _core
from remoe_edge.profile.fit import SHARES
from remoe_edge.profile.folds import cut_folds
from remoe_edge.profile.pack import NO_LINKS, Weights, pack
from remoe_edge.profile.replays import Trials
from remoe_edge.profile.samples import columns, labels, merged, pick
from remoe_edge.profile.weights import Choice, choose, fit_weights
from remoe_edge.routing.trace import Trace, read_trace

TABLE = Path(__file__).parents[1] / "csrc/cache/reuse_columns.def"
# A row: identifier and name, a number for each size of the cache, the meaning.
ROW = re.compile(r'(REMOE_COLUMN\(\w+, +)"([^"]+)",(?: +[-+.\w]+,)+(  ".*"\))')


class Models:
    """Judge weights by several models, all worth the same."""

    def __init__(self, models: Sequence[Sequence[Trace]]) -> None:
        self._trials = [Trials(folds, [NO_LINKS] * len(folds), pack) for folds in models]

    def choosing(self, share: float, weights: Weights) -> float:
        """Give the mean over models."""
        return float(np.mean([each.choosing(share, weights) for each in self._trials]))

    def judging(self, share: float, weights: Weights) -> list[float]:
        """Give each model's mean."""
        return [float(np.mean(each.judging(share, weights))) for each in self._trials]


def table(text: str, choices: dict[float, Choice]) -> str:
    """Put the numbers into the text of the table, into each column's row by its name."""
    names = _core.feature_names()
    weights = {
        name: [float(choice.weights[i]) for choice in choices.values()]
        for i, name in enumerate(names)
    }
    rows = []
    for line in text.splitlines():
        found = ROW.fullmatch(line)
        if found:
            head, name, tail = found.groups()
            numbers = "".join(f" {_literal(each) + ',':>12}" for each in weights.pop(name))
            quoted = f'"{name}",'
            line = f"{head}{quoted:<20}{numbers}{tail}"
        rows.append(line)
    if weights:
        raise SystemExit(f"{TABLE} has no row for {', '.join(weights)}")
    return "\n".join(rows) + "\n"


def _literal(value: float) -> str:
    if value == 0:
        return "0"
    text = f"{value:.4g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def documentation() -> str:
    """Give the columns and their weights as the table of docs/policies.md."""
    sizes = [f"{share:.0%}".replace("%", " %") for share in _core.reuse_shares()]
    lines = [
        f"| column | {' | '.join(sizes)} | what it is |",
        "|---|" + "--:|" * len(sizes) + "---|",
    ]
    for name, weights, meaning in _core.reuse_columns():
        numbers = " | ".join(f"{weight:.4g}".replace("-", "−") for weight in weights)
        lines.append(f"| `{name}` | {numbers} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, write, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, nargs="+", action="append")
    parser.add_argument("--documentation", action="store_true")
    options = parser.parse_args()
    if options.documentation:
        print(documentation(), end="")
        return
    if not options.model:
        parser.error("give the traces of a model: --model TRACE [...]")
    models = [cut_folds([read_trace(path) for path in paths]) for paths in options.model]
    rng = np.random.default_rng(0)
    inputs, wanted = [], []
    for folds in models:
        for fold in folds:
            picks = pick(fold, rng)
            inputs.append(columns(fold, picks, None))
            wanted.append(labels(fold, picks))
    use = [name for name in _core.feature_names() if "prob" not in name and "link" not in name]
    candidates = fit_weights(np.concatenate(inputs), merged(wanted), use)

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    judge = Models(models)
    choices = {share: choose(judge, share, candidates, rng, progress) for share in SHARES}
    TABLE.write_text(table(TABLE.read_text(), choices))
    for share, choice in choices.items():
        taken = ", ".join(f"{each:.1%}" for each in choice.taken)
        print(f"{share:.0%}: horizon {choice.horizon}, searched {choice.searched}; {taken}")


if __name__ == "__main__":
    main()
