"""The options that are tried two by two: every setting and feature of an engine, with values not its own.

An option is written NAME=VALUE. What a value stands for, a path or an address, `trial` knows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from remoe_edge.engine.lossy import BY_RESIDENTS, MEANS

OPTIONS: dict[str, tuple[str, ...]] = {
    "model": ("hybrid", "window", "shards", "dense", "encoder"),
    "cache": ("floor", "100%", "auto", "plan"),
    "policy": ("lru", "least-stale", "arc"),
    "prefetch": ("on", "off"),
    "n_ctx": ("64", "0"),
    "n_batch": ("1", "5", "40"),
    "n_ubatch": ("1", "5", "40"),
    "parallel": ("2", "9", "0"),
    "threads": ("2",),
    "repack": ("on",),
    "flash_attention": ("on", "off"),
    "stream": ("off",),
    "io": ("pread", "io_uring"),
    "direct": ("off",),
    "depth": ("1", "7"),
    "lock": ("off",),
    "verbose": ("on",),
    "peers": ("worker", "nobody"),
    "hedge": ("off",),
    "gpu_layers": ("off",),
    "experts_on": ("cpu",),
    "draft": ("on", "auto", "mtp"),
    "routers": ("tuned",),
    "swap_near": ("0.5",),
    "skip_cold": ("0.4",),
    "skip_small": ("0.4",),
    "coarse_below": ("0.4",),
    "reproducible": ("on",),
    "profile": ("file",),
    "past_prompts": ("file",),
    "trace": ("file",),
    "telemetry": ("file",),
    "publish": ("folder",),
    "states": ("folder",),
}

# Answers with these have other bits than those without, or may have: arms of a bench that differ here
# are not compared either (`Arm.bits`). How a prompt is cut, and how long the KV cache is, are among them.
BITS = (
    "model", "n_ctx", "n_batch", "n_ubatch", "threads", "repack", "flash_attention", "gpu_layers",
    "routers", *MEANS,
)  # fmt: skip

# What does not go together, each with a reason that the engine gives: patterns of both options.
_RESIDENTS = f"({'|'.join(BY_RESIDENTS)})=.*"
_LOSSY = f"({'|'.join(MEANS)})=.*"
REFUSED = (
    ("draft=.*", "parallel=.*"),
    ("draft=.*", _LOSSY),
    ("draft=.*", "model=hybrid"),
    ("draft=mtp", "model=.*"),
    ("peers=.*", _LOSSY),
    ("stream=off", _LOSSY),
    ("trace=file", _LOSSY),
    ("prefetch=on", _RESIDENTS),
    ("cache=plan", _RESIDENTS),
    ("reproducible=on", _RESIDENTS),
    ("repack=on", "coarse_below=.*"),
    ("(stream=off|model=dense)", "(routers=tuned|trace=file)"),
    ("model=dense", "peers=worker"),  # by the worker
    # It has no time per token, nor is an overlay made.
    ("model=encoder", "(cache=plan|routers=tuned)"),
)


def refused(one: str, other: str) -> bool:
    """Say whether two options are known not to go together."""
    return any(
        (re.fullmatch(a, one) and re.fullmatch(b, other))
        or (re.fullmatch(a, other) and re.fullmatch(b, one))
        for a, b in REFUSED
    )


def singles() -> list[str]:
    """List every option."""
    return [f"{name}={value}" for name, values in OPTIONS.items() for value in values]


def pairs() -> Iterator[tuple[str, str]]:
    """Give every two options that are not the same setting."""
    for one, other in itertools.combinations(singles(), 2):
        if one.partition("=")[0] != other.partition("=")[0]:
            yield one, other


def covering(left_out: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Give few sets of options in which every two that go together are together somewhere.

    One after another, each as far as it goes: a pair that is in none yet, and again and again the option
    that brings most such pairs in. The same each time.
    """
    every = singles()
    left = {
        pair: None  # in their order
        for pair in pairs()
        if not refused(*pair) and not set(pair) & set(left_out)
    }
    together = {*left, *((other, one) for one, other in left)}

    def n_new(option: str, row: list[str]) -> int:
        return sum((one, option) in left or (option, one) in left for one in row)

    rows = []
    while left:
        row = list(next(iter(left)))
        while True:
            fitting = [each for each in every if all((each, one) in together for one in row)]
            best = max(fitting, key=lambda option: n_new(option, row), default=None)
            if best is None or not n_new(best, row):
                break
            row.append(best)
        row.sort(key=every.index)
        for pair in itertools.combinations(row, 2):
            left.pop(pair, None)
        rows.append(tuple(row))
    return rows
