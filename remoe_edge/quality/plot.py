"""The picture of price lists: bytes per token against perplexity; needs matplotlib (extra `[plot]`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from remoe_edge.files.pictures import pyplot
from remoe_edge.quality.price_list import Price, PriceList


def mean_perplexity(price: Price) -> float:
    """Give the geometric mean over texts."""
    values = price.perplexity.values()
    return math.exp(sum(math.log(each) for each in values) / len(values))


def draw(lists: Mapping[str, PriceList], path: Path) -> None:
    """Draw each list's means as curves of their own. Raises UnsupportedError without matplotlib."""
    figure, axis = pyplot().subplots(figsize=(8, 5), layout="constrained")
    for style, (routers, prices) in zip(("-", "--", ":", "-."), lists.items(), strict=False):
        base = prices.prices[0]
        for color, means in enumerate(_means(prices)):
            points = [each for each in prices.prices if each.setting.means == means]
            if "+" in means:
                axis.plot(*_points(points), ".", color=f"C{color}", label=f"{means}, {routers}")
            else:
                axis.plot(
                    *_points([base, *points]), style, marker="o", markersize=3, color=f"C{color}",
                    label=f"{means}, {routers}",
                )  # fmt: skip
    axis.set_xlabel("MiB read per token")
    axis.set_ylabel("perplexity, mean of the texts")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _means(prices: PriceList) -> list[str]:
    return list(dict.fromkeys(each.setting.means for each in prices.prices if each.setting.on))


def _points(prices: list[Price]) -> tuple[list[float], list[float]]:
    return (
        [each.bytes_per_token / 2**20 for each in prices],
        [mean_perplexity(each) for each in prices],
    )
