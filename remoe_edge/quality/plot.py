"""The picture of price lists: bytes per token against loss and perplexity (extra `[plot]`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from remoe_edge.engine.lossy import MEANS
from remoe_edge.files.pictures import drawn_name, pyplot, save
from remoe_edge.quality.price_list import Price, PriceList
from remoe_edge.quality.setting import Setting

_STYLES = ("-", "--", ":", "-.")  # by list; a fifth looks like the first
_FILLS = ("full", "none", "left", "right")


def mean_perplexity(price: Price) -> float:
    """Give the geometric mean over texts."""
    values = price.perplexity.values()
    return math.exp(sum(math.log(each) for each in values) / len(values))


def frontier(prices: PriceList) -> list[Price]:
    """Give the prices than which none reads less at as little loss, the cheapest in loss first."""
    kept: list[Price] = []
    for each in sorted(prices.prices, key=lambda each: (each.worst_loss, each.bytes_per_token)):
        if not kept or each.bytes_per_token < kept[-1].bytes_per_token:
            kept.append(each)
    return kept


def draw(lists: Mapping[str, PriceList], path: Path) -> None:
    """Draw each list's means as curves of their own. Raises UnsupportedError without matplotlib.

    Left: the loss in the worst text, with the line of what reads least at each loss. Right: the
    perplexity of the texts themselves, which is less certain.
    """
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    for (name, prices), style, fill in zip(
        lists.items(), cycle(_STYLES), cycle(_FILLS), strict=False
    ):
        name = drawn_name(name)
        _draw_means(left, name, prices, style, fill, lambda each: 100 * each.worst_loss)
        _draw_means(right, name, prices, style, fill, mean_perplexity)
        best = frontier(prices)
        left.plot(
            [_kib(each) for each in best], [100 * each.worst_loss for each in best], style,
            color="0.7", linewidth=4, zorder=0, label=f"least bytes, {name}",
        )  # fmt: skip
    left.set_ylabel("loss in the worst text, % of perplexity, against the same routers")
    right.set_ylabel("perplexity, mean of the texts")
    for axis in (left, right):
        axis.set_xlabel("KiB read per token")
        axis.grid(alpha=0.3)
    left.legend(fontsize=7)
    save(figure, path, dpi=110)


def _draw_means(
    axis: Any,
    name: str,
    prices: PriceList,
    style: str,
    fill: str,
    value: Callable[[Price], float],
) -> None:
    together = [each for each in prices.prices if len(each.setting.on) > 1]
    base = prices.prices[0]
    for color, means in enumerate(MEANS):
        points = [each for each in prices.prices if each.setting.on.keys() == {means}]
        if points:
            points = [base, *points]
            axis.plot(
                [_kib(each) for each in points], [value(each) for each in points], style,
                marker="o", markersize=4, fillstyle=fill, color=f"C{color}",
                label=f"{means}, {name}",
            )  # fmt: skip
    for color, with_coarse in ((len(MEANS), False), (len(MEANS) + 1, True)):
        points = [each for each in together if _coarser(each.setting) == with_coarse]
        if points:
            axis.plot(
                [_kib(each) for each in points], [value(each) for each in points],
                linestyle="none", marker="d", markersize=5, fillstyle=fill, color=f"C{color}",
                label=f"several{', coarse_below too' if with_coarse else ''}, {name}",
            )  # fmt: skip


def _coarser(setting: Setting) -> bool:
    return setting.coarse_below > 0


def _kib(price: Price) -> float:
    return price.bytes_per_token / 1024
