"""Look between measured settings for the one that reads least at a loss that a user has in mind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from remoe_edge.quality.price_list import Price
from remoe_edge.quality.setting import Setting

_TRIES = 8
_SHORT = 0.9  # of the way to the loss: what is measured lies beside the straight line
_WORTH = 0.995  # of the bytes of the best so far, or it is not tried


def closer(
    measure: Callable[[Setting], Price], known: Sequence[Price], loss: float
) -> Iterator[Price]:
    """Measure settings between some that cost at most `loss` and some that cost more.

    Bytes and loss are taken to change evenly from one to the other; each price that comes corrects
    the next guess. Ends where no guess reads less than the best price, at the latest after 8.
    """
    prices = list(known)
    for _ in range(_TRIES):
        setting = _best_guess(prices, loss)
        if setting is None:
            return
        found = measure(setting)
        prices.append(found)
        yield found


def _best_guess(prices: Sequence[Price], loss: float) -> Setting | None:
    within = [each for each in prices if each.costs_at_most(loss)]
    beyond = [each for each in prices if each.worst_loss > loss]
    if not within:
        return None
    least = _WORTH * min(each.bytes_per_token for each in within)
    tried = {each.setting for each in prices}
    guess = None
    for a in within:
        for b in beyond:
            way = _SHORT * (loss - a.worst_loss) / (b.worst_loss - a.worst_loss)
            n_bytes = a.bytes_per_token + way * (b.bytes_per_token - a.bytes_per_token)
            setting = _between(a.setting, b.setting, way)
            if n_bytes < least and setting not in tried:
                least, guess = n_bytes, setting
    return guess


def _between(a: Setting, b: Setting, way: float) -> Setting:
    other = asdict(b)
    return Setting(
        **{name: round(each + way * (other[name] - each), 4) for name, each in asdict(a).items()}
    )
