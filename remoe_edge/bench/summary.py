"""From runs to figures: medians over the rounds, with bootstrap intervals.

A figure of a run is taken over the timed tokens of all its prompts; what is reported is the median of
the rounds. The interval holds 95 % of what the same arithmetic gives for rounds and prompts drawn
again with replacement (tokens, where there is one round of one prompt). A ratio draws the same rounds
and prompts for both arms. Three rounds make a wide interval, and an honest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.counters import PER_TOKEN

Floats = npt.NDArray[np.float64]
# [round][prompt] -> a value for each token, or one for the prompt.
Cells = list[list[Floats]]
# From the values of a round, prompts one after the other, to a figure.
Statistic = Callable[[Floats], float]

DRAWS = 500
_PER_TOKEN = (*PER_TOKEN, "storage_bytes", "major_faults")


def summarise(record: dict[str, Any]) -> dict[str, Any]:
    """Summarise every arm that was run, and set it against the first stock arm.

    RETURNS: arm -> figure -> {"median", "low", "high"}, or a plain number where there is no interval.
    """
    warm, seed = record["settings"]["warm"], record["settings"]["seed"]
    runs = {name: _runs(record, name) for name in record["arms"]}
    figures: dict[str, Any] = {}
    for name, mine in runs.items():
        if mine:
            figures[name] = _figures(mine, warm, seed)
    reference = reference_arm(record)
    for name, mine in runs.items():
        if reference is None or not mine or name == reference:
            continue
        figures[name]["against"] = {
            "arm": reference,
            "tpot_ratio": _ratio(
                _cells(runs[reference], "token_ms", warm), _cells(mine, "token_ms", warm), seed
            ),
            "first_token_ratio": _ratio(
                _whole(runs[reference], "first_token_ms"), _whole(mine, "first_token_ms"), seed
            ),
        }
    return figures


def reference_arm(record: dict[str, Any]) -> str | None:
    """Choose what the others are set against: the first stock arm that was run."""
    done = {run["arm"] for run in record["runs"]}
    return next(
        (name for name, arm in record["arms"].items() if arm["kind"] != "stream" and name in done),
        None,
    )


def difference(record: dict[str, Any]) -> dict[str, Any] | None:
    """Find where the last run chose another token than an earlier one of the same bits."""
    last = record["runs"][-1]
    bits = {name: arm["bits"] for name, arm in record["arms"].items()}
    for earlier in record["runs"][:-1]:
        if bits[earlier["arm"]] == bits[last["arm"]]:
            return _first_difference(earlier, last)
    return None


def partings(record: dict[str, Any]) -> list[str]:
    """Say of arms with different bits whether they chose the same tokens."""
    firsts: dict[str, dict[str, Any]] = {}
    for run in record["runs"]:
        firsts.setdefault(record["arms"][run["arm"]]["bits"], run)
    (reference, first), *others = firsts.items() or [("", {})]
    lines = []
    for bits, run in others:
        found = _first_difference(first, run)
        where = "chose the same tokens here" if found is None else found["line"]
        lines.append(f"other bits ({bits} against {reference}): {where}")
    return lines


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    for mine, theirs in zip(one["prompts"], other["prompts"], strict=False):
        for i, (a, b) in enumerate(zip(mine["chosen"], theirs["chosen"], strict=False)):
            if a != b:
                return {
                    "arms": [one["arm"], other["arm"]],
                    "prompt": mine["name"],
                    "token": i,
                    "chosen": [a, b],
                    "line": (
                        f"{one['arm']} and {other['arm']} part at prompt {mine['name']}, "
                        f"token {i}: {a} against {b}"
                    ),
                }
    return None


def _runs(record: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    return [run for run in record["runs"] if run["arm"] == arm]


def _figures(runs: list[dict[str, Any]], warm: int, seed: int) -> dict[str, Any]:
    tokens = _cells(runs, "token_ms", warm)
    ttft = [[np.array([p["ttft_ms"]]) for p in run["prompts"]] for run in runs]
    tpot = _interval(tokens, _average, seed)
    figures: dict[str, Any] = {
        "rounds": len(runs),
        "disturbed_rounds": sum(bool(run["marks"]) for run in runs),
        "tpot_ms": tpot,
        "tokens_per_s": {
            "median": 1000 / tpot["median"],
            "low": 1000 / tpot["high"],
            "high": 1000 / tpot["low"],
        },
        "ttft_ms": _interval(ttft, _average, seed),
        "load_ms": _interval(_whole(runs, "load_ms"), _average, seed),
        "first_token_ms": _interval(_whole(runs, "first_token_ms"), _average, seed),
        "peak_bytes": max((run["peak_bytes"] or 0 for run in runs), default=0) or None,
        "peak_source": runs[0]["peak_source"],
        "run_major_faults": float(np.median([run["major_faults"] for run in runs])),
    }
    for share in (50, 90, 99):
        figures[f"p{share}_ms"] = _interval(tokens, _nearest_rank(share / 100), seed)
    for name in _PER_TOKEN:
        if name in runs[0]["prompts"][0]["tokens"]:
            figures[name] = _of(_cells(runs, name, warm), _average)
    if "stall_ms" in figures:
        figures["compute_ms"] = figures["tpot_ms"]["median"] - figures["stall_ms"]
        used = figures["hits"] + figures["misses"]
        figures["hit_rate"] = figures["hits"] / used if used else None
    by_peers = [run["remote"]["remote_experts"] for run in runs if run.get("remote")]
    figures["experts_by_peers"] = float(np.median(by_peers)) if by_peers else None
    for name in ("energy_joules", "joules_per_token", "net_joules_per_token"):
        joules = [run[name] for run in runs if run.get(name) is not None]
        figures[name] = float(np.median(joules)) if joules else None
    return figures


def _cells(runs: list[dict[str, Any]], name: str, warm: int) -> Cells:
    return [
        [np.array(prompt["tokens"][name][warm:], np.float64) for prompt in run["prompts"]]
        for run in runs
    ]


def _whole(runs: list[dict[str, Any]], name: str) -> Cells:
    return [[np.array([run[name]], np.float64)] for run in runs]


def _average(values: Floats) -> float:
    return float(values.mean())


def _nearest_rank(share: float) -> Statistic:
    def statistic(values: Floats) -> float:
        rank = max(0, math.ceil(share * len(values)) - 1)
        return float(np.partition(values, rank)[rank])

    return statistic


def _of(cells: Cells, statistic: Statistic) -> float:
    """Take a figure of every round, and the median of the rounds."""
    return float(np.median([statistic(np.concatenate(prompts)) for prompts in cells]))


def _interval(cells: Cells, statistic: Statistic, seed: int) -> dict[str, float]:
    return _around(_of(cells, statistic), _drawn(cells, statistic, seed))


def _ratio(one: Cells, other: Cells, seed: int) -> dict[str, float]:
    n_rounds = min(len(one), len(other))
    one, other = one[:n_rounds], other[:n_rounds]
    drawn = _drawn(one, _average, seed) / _drawn(other, _average, seed)
    return _around(_of(one, _average) / _of(other, _average), drawn)


def _around(value: float, drawn: Floats) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"median": value, "low": float(low), "high": float(high)}


def _drawn(cells: Cells, statistic: Statistic, seed: int) -> Floats:
    """Take the figure of rounds and prompts drawn again; equal seeds draw the same ones."""
    rng = np.random.default_rng(seed)
    n_rounds, n_prompts = len(cells), len(cells[0])
    if n_rounds == 1 and n_prompts == 1:
        values = cells[0][0]
        at = rng.integers(0, len(values), (DRAWS, len(values)))
        return np.array([statistic(values[row]) for row in at])
    rounds = rng.integers(0, n_rounds, (DRAWS, n_rounds))
    prompts = rng.integers(0, n_prompts, (DRAWS, n_rounds, n_prompts))
    if statistic is _average:  # from sums, since every figure but three is a mean
        sums = np.array([[each.sum() for each in row] for row in cells])
        counts = np.array([[len(each) for each in row] for row in cells])
        rows = rounds[..., None]
        means = sums[rows, prompts].sum(-1) / counts[rows, prompts].sum(-1)
        return np.asarray(np.median(means, axis=1), np.float64)
    return np.array(
        [
            np.median(
                [
                    statistic(np.concatenate([cells[r][p] for p in row]))
                    for r, row in zip(rounds[i], prompts[i], strict=True)
                ]
            )
            for i in range(DRAWS)
        ]
    )
