"""Doing without some experts, where the user pays for fewer reads with some quality (docs/quality.md)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from remoe_edge.engine import budget as budgets
from remoe_edge.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from remoe_edge.engine.loaded import Loaded
    from remoe_edge.engine.settings import EngineSettings
    from remoe_edge.native import _core

MEANS = ("swap_near", "skip_cold", "skip_small", "coarse_below")
COUNTS = ("weighed", "swapped", "skipped_cold", "skipped_small", "coarse")  # of the core
# What these choose depends on what the cache holds.
BY_RESIDENTS = ("swap_near", "skip_cold", "coarse_below")


def amount(name: str, value: object) -> float:
    """Return one of MEANS' settings as a number. Raises InputError where it makes no sense."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(value)
    if not 0 <= number < 1:
        raise InputError(f"{name} is a share from 0 (off) to below 1, not {value!r}")
    return number


def means_of(settings: EngineSettings) -> dict[str, float]:
    """Give those of MEANS that are on."""
    every = {name: float(getattr(settings, name)) for name in MEANS}
    return {name: value for name, value in every.items() if value > 0}


def by_residents(settings: EngineSettings) -> bool:
    """Say whether answers depend on which experts the cache holds."""
    return not means_of(settings).keys().isdisjoint(BY_RESIDENTS)


def check(settings: EngineSettings) -> None:
    """Raise InputError where means are on beside settings with which their promises would not hold."""
    means = means_of(settings)
    if not means:
        return
    what = " and ".join(means)
    if not settings.stream:
        raise InputError(f"{what} choose among streamed experts: they need streaming on")
    if settings.draft != "off":
        raise InputError(f"{what} with draft: guesses promise the text of decoding without loss")
    if settings.peers:
        raise InputError(f"{what} with peers: which experts are here would depend on the network")
    if settings.experts_on == "gpu":
        raise InputError(
            f"{what} with experts_on gpu: experts are swapped and skipped on the CPU only"
        )
    if settings.repack and "coarse_below" in means:
        raise InputError("coarse_below with repack: experts are computed as they were read")
    if settings.gpu_layers not in ("auto", "off"):
        raise InputError(
            f"{what} with gpu_layers {settings.gpu_layers}: the experts' weights would lie on the GPU, "
            "out of reach: gpu_layers off"
        )
    if budgets.is_plan(settings.cache) and by_residents(settings):
        raise InputError(
            f"{what} with a cache of plan: it follows what tokens take, and the answer would depend on "
            "the clock with it: give a size or a share"
        )
    if settings.prefetch == "on" and by_residents(settings):
        raise InputError(
            f"{what} with prefetch on: which experts are resident would depend on the clock, and the "
            "answer with it: prefetch off"
        )


def refuse_other_features(settings: EngineSettings, *, functions: bool, trace: bool) -> None:
    """Raise InputError where a feature was handed in that means are not compatible with."""
    means = means_of(settings)
    if means and functions:
        raise InputError(f"{' and '.join(means)} with a deployment: experts are then elsewhere")
    if means and trace:
        raise InputError(
            f"{' and '.join(means)} with a trace: it would not hold what the routers chose"
        )


def coarse_path(path: Path, settings: EngineSettings) -> Path | None:
    """Say where a model's coarse experts are to be read from; None where no setting asks for any."""
    if not settings.coarse_below:
        return None
    from remoe_edge.files import coarse

    return coarse.beside(path) if settings.coarse is None else Path(settings.coarse)


def coarse_file(path: Path, settings: EngineSettings, file: _core.ModelFile) -> Path | None:
    """Give the coarse experts that a setting asks for, checked. Raises InputError without any."""
    found = coarse_path(path, settings)
    if found is not None:
        from remoe_edge.files import coarse

        coarse.check(found, file)
    return found


def prepare(loaded: Loaded) -> None:
    """Tell the core of a model that has no context yet which means are on."""
    means = means_of(loaded.settings)
    if not means:
        return
    if loaded.native is None:
        loaded.notes.append(f"{' and '.join(means)} are not used: no experts are streamed")
        return
    loaded.native.set_dial(**means)
    loaded.lossy = " ".join(f"{name} {value:g}" for name, value in means.items())


def verify(loaded: Loaded) -> None:
    """Raise UnsupportedError where this model's graphs do not let experts be swapped or skipped."""
    if not loaded.lossy or loaded.native is None:
        return
    try:
        loaded.native.check_dial()
    except UnsupportedError as error:
        flags = ", ".join("--" + name.replace("_", "-") for name in means_of(loaded.settings))
        raise UnsupportedError(f"{flags}: {loaded.path}: {error}") from None


def said_of(counts: Mapping[str, int]) -> str:
    """Say what share of the experts that tokens chose was swapped, skipped or coarse; "" without loss."""
    weighed = counts["weighed"]
    if not weighed:
        return ""
    skipped = counts["skipped_cold"] + counts["skipped_small"]
    coarse = counts["coarse"]
    return (
        f"lossy: {100 * counts['swapped'] / weighed:.1f} % of experts swapped, "
        f"{100 * skipped / weighed:.1f} % skipped"
        + (f", {100 * coarse / weighed:.1f} % coarse" if coarse else "")
    )
