"""Choose the setting that reads least at a price that the user names."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.files import coarse as coarse_files
from remoe_edge.native import _core
from remoe_edge.quality.price_list import Price, PriceList, place, read
from remoe_edge.quality.setting import Setting

_SMALLER = 0.02  # of the cache's share: so much smaller counts as the size that was measured


def parse_loss(text: str | float) -> float:
    """Read a loss of perplexity: "1%" or 0.01. Raises InputError where it makes no sense."""
    value = math.nan
    if isinstance(text, str):
        number = text.strip()
        with contextlib.suppress(ValueError):
            value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    elif isinstance(text, int | float) and not isinstance(text, bool):
        value = float(text)
    if not 0 <= value < 1:
        raise InputError(f"quality_loss is a share such as '1%', below 100%, not {text!r}")
    return value


def choose(prices: PriceList, loss: float, *, reproducible: bool = False) -> Price:
    """Give the price with fewest bytes a token that costs at most `loss` in every text.

    reproducible: only settings that choose the same whatever the cache holds.
    """
    within = [
        each
        for each in prices.prices
        if each.costs_at_most(loss) and (each.setting.reproducible or not reproducible)
    ]
    return min(
        within or prices.prices[:1], key=lambda each: (each.bytes_per_token, each.worst_loss)
    )


@dataclass(frozen=True)
class Choice:
    """Hold what was chosen, why, and for which caches it holds."""

    setting: Setting
    why: str
    least_cache: float  # share of the experts that need slots for the loss to be what was measured


def choose_for(
    model: Path,
    routers: Path | None,
    loss: float,
    *,
    reproducible: bool,
    path: Path | None = None,
    coarse: Path | None = None,
) -> Choice:
    """Choose from a price list: the one beside the model, or `path`. Raises InputError without one.

    coarse: the file of coarse experts where it is not beside the model. Raises InputError where the
    setting needs it and it is not there, or is not the one that was measured.
    """
    prices = read(path or place(model, routers), model, routers)
    base, chosen = prices.prices[0], choose(prices, loss, reproducible=reproducible)
    texts = ", ".join(str(each["name"]) for each in prices.texts)
    if chosen.setting.coarse_below:
        _check_coarse(prices, model, coarse or coarse_files.beside(model))
    if chosen.setting == Setting():
        why = (
            f"quality loss of {loss:.3g}: no setting was measured to cost so little, so none is on"
        )
    else:
        saved = 1 - chosen.bytes_per_token / base.bytes_per_token if base.bytes_per_token else 0
        why = (
            f"lossy, {chosen.setting}: {100 * chosen.worst_loss:.2f} % of perplexity at worst "
            f"and {100 * saved:.0f} % fewer bytes a token, measured on {texts} at a cache of "
            f"{100 * prices.cache:.0f} %"
        )
    least = 0.0 if chosen.setting.reproducible else max(0.0, prices.cache - _SMALLER)
    return Choice(chosen.setting, why, least)


def _check_coarse(prices: PriceList, model: Path, path: Path) -> None:
    found = coarse_files.check(path, _core.ModelFile.open(str(model)))
    measured = prices.coarse or {}
    if found.own != measured.get("fingerprint"):
        raise InputError(
            f"{path} ({found.type}) is not the file of coarse experts that was measured "
            f"({measured.get('type')}): `remoe-edge price {model} --text FILE` measures it"
        )


def check_cache(choice: Choice, model: Path, n_slots: int, total: int) -> None:
    """Raise InputError where a cache is so small that a setting would cost more than was measured."""
    share = n_slots / total
    if share < choice.least_cache:
        raise InputError(
            f"{choice.setting} was measured at a larger cache than this of {100 * share:.0f} %: "
            f"`remoe-edge price {model} --cache {100 * share:.0f}% --text FILE` measures here"
        )
