"""Which settings a price list measures: each means over its range, then some of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from remoe_edge.quality.price_list import Price
from remoe_edge.quality.setting import Setting

_NEAR = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # of an even share of the weights
_COARSE = (0.6, 0.8, 1.0, 1.2, 1.6, 2.4, 6.0)  # the same; the last is nearly every expert
_TOGETHER = 3  # of each means, the strongest that cost little enough by themselves

Measure = Callable[[Setting], Price]


def alone(top_k: int, *, coarse: bool = False) -> dict[str, tuple[Setting, ...]]:
    """Give the range of each means, the mildest first. A token's even share is 1 / top_k.

    coarse: there is a file of coarse experts.
    """

    def shares(of_even: tuple[float, ...]) -> list[float]:
        return list(dict.fromkeys(min(0.95, round(each / top_k, 4)) for each in of_even))

    means = {
        "swap_near": tuple(Setting(swap_near=each) for each in _NEAR),
        "skip_cold": tuple(Setting(skip_cold=each) for each in shares(_SHARES)),
        "skip_small": tuple(Setting(skip_small=each) for each in shares(_SHARES)),
    }
    if coarse:
        means["coarse_below"] = tuple(Setting(coarse_below=each) for each in shares(_COARSE))
    return means


def survey(
    measure: Measure, top_k: int, most_loss: float, *, coarse: bool = False
) -> Iterator[Price]:
    """Measure settings until they cost more than `most_loss`, and give each price as it is known."""
    kept: dict[str, list[Setting]] = {}
    for means, settings in alone(top_k, coarse=coarse).items():
        kept[means] = []
        for setting in settings:
            found = measure(setting)
            yield found
            if not found.costs_at_most(most_loss):
                break
            kept[means].append(setting)
    swaps, skips = kept["swap_near"][-_TOGETHER:], kept["skip_cold"][-_TOGETHER:]
    for first in swaps:
        yield from _mildest_first(measure, first, skips, most_loss)
    coarser = kept.get("coarse_below", [])[-_TOGETHER:]
    for first in coarser:
        yield from _mildest_first(measure, first, kept["skip_cold"], most_loss)
    for first in coarser[-1:]:
        yield from _mildest_first(measure, first, kept["swap_near"][:_TOGETHER], most_loss)
        for mildest in kept["swap_near"][:1]:
            both = replace(first, swap_near=mildest.swap_near)
            yield from _mildest_first(measure, both, kept["skip_cold"], most_loss)


def _mildest_first(
    measure: Measure, first: Setting, others: list[Setting], most_loss: float
) -> Iterator[Price]:
    """Measure `first` together with each of the others, until it costs too much."""
    for other in others:
        found = measure(replace(first, **other.on))
        yield found
        if not found.costs_at_most(most_loss):
            return
