"""The price list of a model: what each setting costs in quality and saves in reads. A file beside it."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from remoe_edge.errors import InputError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.reading import json_object, read_whole
from remoe_edge.native import _core
from remoe_edge.quality.measure import Measured
from remoe_edge.quality.setting import Setting

_KIND = "remoe-edge price list 1"
SUFFIX = ".price.json"


@dataclass(frozen=True)
class Price:
    """Hold one setting's point. All shares; perplexity, divergence, change, low and high by text.

    divergence: how much worse perplexity becomes if the text is what the model without loss expects:
    e to the mean KL of the next token, less 1. change: of the perplexity of the text itself, low and
    high its 95 %; it needs a hundred times the tokens to be as certain. bytes_per_token,
    misses_per_token: read for a decoded token, mean of all texts. agreement: share of positions
    whose likeliest token is that without loss. swapped, skipped, coarse:
    shares of the experts that tokens chose.
    """

    setting: Setting
    bytes_per_token: float
    misses_per_token: float
    perplexity: dict[str, float]
    divergence: dict[str, float]
    change: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    agreement: float
    swapped: float
    skipped: float
    coarse: float = 0.0

    @property
    def worst_loss(self) -> float:
        """Give the divergence in the text that suffers most."""
        return max(self.divergence.values())

    def costs_at_most(self, loss: float) -> bool:
        """Say whether no text diverges by more, and none is certain to have become worse by more."""
        return self.worst_loss <= loss and not any(low > loss for low in self.low.values())


@dataclass(frozen=True)
class PriceList:
    """Hold points that were measured under the same conditions; the first is without loss."""

    model: str
    fingerprint: str
    routers: str | None  # SHA-256 of the overlay
    cache: float  # share of the experts that had slots
    policy: str
    window: int
    texts: tuple[dict[str, Any], ...]
    prices: tuple[Price, ...]
    coarse: dict[str, str] | None = None  # the coarse experts that there were: type and fingerprint

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {"kind": _KIND, **asdict(self)}


# Within so many standard errors 95 % lie, by degrees of freedom: few windows know their spread badly.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def _student(freedom: int) -> float:
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96 + 2.6 / freedom


def price(setting: Setting, found: Measured, base: Measured) -> Price:
    """Compare what a setting gave with what came without loss, token by token."""
    ratios = {}
    for name, nll in found.nll.items():
        differences = (nll - base.nll[name]).mean(axis=1)  # of each window
        n = len(differences)
        spread = math.nan
        if n > 1:
            spread = _student(n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
        mean = differences.mean()
        ratios[name] = [math.expm1(mean + each) for each in (0, -spread, spread)]
    same = sum(
        int((heads.ids[..., 0] == base.heads[name].ids[..., 0]).sum())
        for name, heads in found.heads.items()
    )
    weighed = found.counts["weighed"] or 1
    skipped = found.counts["skipped_cold"] + found.counts["skipped_small"]
    change, low, high = ({name: row[i] for name, row in ratios.items()} for i in range(3))
    return Price(
        setting=setting,
        bytes_per_token=found.counts["bytes_read"] / found.n_tokens,
        misses_per_token=found.counts["misses"] / found.n_tokens,
        perplexity={name: float(np.exp(nll.mean())) for name, nll in found.nll.items()},
        divergence={
            name: math.expm1(max(0.0, float(each.mean())))
            for name, each in found.divergence.items()
        },
        change=change,
        low=low,
        high=high,
        agreement=same / found.n_tokens,
        swapped=found.counts["swapped"] / weighed,
        skipped=skipped / weighed,
        coarse=found.counts["coarse"] / weighed,
    )


def place(model: Path, routers: Path | None) -> Path:
    """Say where the list of a model lies: beside it, for each set of routers another."""
    name = model.name.removesuffix(".gguf")
    if routers is not None:
        own = routers.name.removesuffix(".gguf")
        name = own if own.startswith(name) else f"{name}.{own}"
    return model.with_name(name + SUFFIX)


def identity(model: Path, routers: Path | None) -> tuple[str, str | None]:
    """Give the fingerprints of a model and of its tuned routers."""
    overlay = None
    if routers is not None:
        overlay = hashlib.sha256(read_whole(routers, "tuned routers")).hexdigest()
    return fingerprint(_core.ModelFile.open(str(model))), overlay


def read(path: Path, model: Path, routers: Path | None) -> PriceList:
    """Read the list of this model under these routers. Raises InputError where it is none of theirs."""
    command = f"remoe-edge price {model}" + (f" --routers {routers}" if routers else "")
    again = f"`{command} --text FILE` makes one"
    if not path.is_file():
        raise InputError(f"what quality costs was not measured, {path} is not there: {again}")
    try:
        found = read_any(path)
    except InputError as error:
        raise InputError(f"{error}: {again}") from error
    own, overlay = identity(model, routers)
    if found.fingerprint != own:
        raise InputError(f"{path} was measured on another model, {found.model}: {again}")
    if found.routers != overlay:
        raise InputError(f"{path} was measured under other routers: {again}")
    return found


def read_any(path: Path) -> PriceList:
    """Read a list, whosever it is. Raises InputError where the file holds none."""
    try:
        return _parse(json_object(read_whole(path, "price list")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no price list ({error})") from error


def _parse(plain: Mapping[str, Any]) -> PriceList:
    if plain["kind"] != _KIND:
        raise ValueError(f"its kind is {plain['kind']!r}")
    prices = [_price(each) for each in plain["prices"]]
    if not prices or prices[0].setting != Setting():
        raise ValueError("its first price is not of no loss")
    return PriceList(
        model=_words(plain["model"]),
        fingerprint=_words(plain["fingerprint"]),
        routers=None if plain["routers"] is None else _words(plain["routers"]),
        cache=_number(plain["cache"]),
        policy=_words(plain["policy"]),
        window=int(_number(plain["window"])),
        texts=tuple({**each, "name": _words(each["name"])} for each in plain["texts"]),
        prices=tuple(prices),
        coarse=_coarse(plain.get("coarse")),
    )


def _coarse(plain: Any) -> dict[str, str] | None:
    return None if plain is None else {name: str(plain[name]) for name in ("type", "fingerprint")}


def _price(plain: Mapping[str, Any]) -> Price:
    def by_text(name: str) -> dict[str, float]:
        found = {str(text): _number(value) for text, value in plain[name].items()}
        if not found:
            raise ValueError("a price has no text")
        return found

    return Price(
        setting=Setting(**{name: _share(value) for name, value in plain["setting"].items()}),
        bytes_per_token=_number(plain["bytes_per_token"]),
        misses_per_token=_number(plain["misses_per_token"]),
        perplexity=by_text("perplexity"),
        divergence=by_text("divergence"),
        change=by_text("change"),
        low=_bounds(plain["low"]),
        high=_bounds(plain["high"]),
        agreement=_number(plain["agreement"]),
        swapped=_number(plain["swapped"]),
        skipped=_number(plain["skipped"]),
        coarse=_number(plain.get("coarse", 0.0)),
    )


def _bounds(plain: Mapping[str, Any]) -> dict[str, float]:
    """Read one side of intervals; null where one window gave none."""
    return {text: math.nan if each is None else _number(each) for text, each in plain.items()}


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # of an integer that no float holds
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"{str(value)[:40]!r} is no number")


def _share(value: object) -> float:
    share = _number(value)
    if not 0 <= share < 1:
        raise ValueError(f"{share:g} is no share below 1")
    return share


def _words(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value
