"""Which settings a price list measures: each means over its range, then two of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from remoe_edge.quality.price_list import Price
from remoe_edge.quality.setting import Setting

_NEAR = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # of an even share of the weights
_TOGETHER = 3  # of each means, the strongest that cost little enough by themselves

Measure = Callable[[Setting], Price]


def alone(top_k: int) -> dict[str, tuple[Setting, ...]]:
    """Give the range of each means, the mildest first. A token's even share is 1 / top_k."""
    shares = [min(0.95, round(each / top_k, 4)) for each in _SHARES]
    return {
        "swap_near": tuple(Setting(swap_near=each) for each in _NEAR),
        "skip_cold": tuple(Setting(skip_cold=each) for each in shares),
        "skip_small": tuple(Setting(skip_small=each) for each in shares),
    }


def survey(measure: Measure, top_k: int, most_loss: float) -> Iterator[Price]:
    """Measure settings until they cost more than `most_loss`, and give each price as it is known."""
    kept: dict[str, list[Setting]] = {}
    for means, settings in alone(top_k).items():
        kept[means] = []
        for setting in settings:
            found = measure(setting)
            yield found
            if not found.costs_at_most(most_loss):
                break
            kept[means].append(setting)
    for first in kept["swap_near"][-_TOGETHER:]:
        for second in kept["skip_cold"][-_TOGETHER:]:
            found = measure(Setting(swap_near=first.swap_near, skip_cold=second.skip_cold))
            yield found
            if not found.costs_at_most(most_loss):
                break
